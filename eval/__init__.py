"""Subject-level predictions, metrics, baselines and the report."""
