"""Cleaning of the signal before it is stored: flags, order of operations, confounds, time."""
