"""Model, objectives, DeepSpeed engine and checkpoints of the three phases."""
