"""`simulate-fmri`: synthetic cohorts with planted effects of known size."""
