"""The command `inspect-fmri`: look into a shard set, verify it, and take runs out of it as NIfTI."""
