"""Parts of `scripts/tune.py`: what is searched, who runs which trial, and how one runs."""
