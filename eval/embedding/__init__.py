"""What the model makes of windows and subjects, as numbers that others can use."""
