"""What `scripts/bench/stream.py` times: one module a family of readers, ours among them.

A family module has

- `PACKAGES`: the packages beyond boldstream's own that it needs, import name to name in the registry;
- `prepare(windows, folder)`: writes the family's files of these windows into its folder;
- `contenders(windows, folder)`: a list of `Contender`.
"""

FAMILIES = (
    "ours",
    "floors",
    "zarr_python",
    "tensorstore",
    "per_frame",
    "webdataset",
    "mosaic",
    "litdata",
    "nifti",
)
