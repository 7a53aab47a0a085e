"""NIfTI collections -> shard sets, with Dask."""
