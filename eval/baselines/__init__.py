"""Simple models that ours has to beat, on the same subjects and the same split."""
