"""Why the model answers as it does: attribution to voxels, checks of it, and attention over time."""
