"""Phases 1 and 2: objectives, and what a step and a validation compute."""
