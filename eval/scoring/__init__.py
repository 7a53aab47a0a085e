"""Scores of subjects: metrics, intervals, comparisons."""
