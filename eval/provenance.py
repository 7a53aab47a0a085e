"""Who wrote a file, and with which software."""

from __future__ import annotations

import platform
from importlib import metadata

GENERATOR = "boldstream eval-fmri"
PACKAGES = ("boldstream", "torch", "deepspeed", "numpy", "scipy", "scikit-learn", "nilearn", "nibabel", "matplotlib")


def software_versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
