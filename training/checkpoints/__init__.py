"""What a run leaves on disk: checkpoints to continue from, and weights that travel."""
