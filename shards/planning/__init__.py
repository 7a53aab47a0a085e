"""Where a training job will be bound: the model, its measured rates, and `bench-fmri`."""
