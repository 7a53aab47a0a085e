"""What the trained model says of every subject."""
