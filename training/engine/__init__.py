"""Ranks, DeepSpeed and its configuration, and which parameters learn."""
