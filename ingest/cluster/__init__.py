"""Where shards are built: this process, local workers, jobs of a queue, a running Dask scheduler."""
