"""The sizes of the model, and how long and how fast each trains.

`tff` and `hackathon` are the two ancestors, built as their code is (`training.networks.ancestor`) and kept as
references to compare with; the others are one architecture in three sizes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from shards.errors import UsageError

Family = Literal["boldstream", "ancestor"]
PoolName = Literal["cls", "mean", "moments"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """The numbers that, with a mask, rebuild a model."""

    family: Family = "boldstream"
    """`boldstream`: linear trunk and convolution towers around a small latent; `ancestor`: TFF's networks."""
    intensity: bool = False
    """Feed the intensity as a second channel beside the residual."""
    latent: int
    """D, width of a frame's latent."""
    channels: tuple[int, ...]
    """Channels of each convolution stage."""
    blocks: int
    """Residual blocks of each stage after the first."""
    width: int
    """W, width of the transformer."""
    depth: int
    """Layers of the transformer."""
    heads: int
    """Attention heads."""
    dropout: float
    """Of the transformer."""
    causal: bool = False
    """Phase 2 also learns to expect each frame from those before it, and phase 3 reads latents filtered by that."""
    positions: int | None = None
    """Learned positions (family `ancestor`): a window is shorter than this; None: rotary, any length."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """Rebuild from JSON."""
        return cls(**(values | {"channels": tuple(values["channels"])}))

    @property
    def input_channels(self) -> int:
        """C of the dense input."""
        return 2 if self.intensity else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A size of the model, and how each phase trains it; every value has a flag."""

    size: Architecture
    pool: PoolName
    pca_frames: int
    batch_size: tuple[int, int, int]
    steps: tuple[int, int, int]
    lr: tuple[float, float, float]


PRESETS = {
    "tiny": Preset(
        size=Architecture(latent=32, channels=(32, 32), blocks=1, width=64, depth=2, heads=4, dropout=0.0, causal=True),
        pool="moments",
        pca_frames=2048,
        batch_size=(4, 8, 4),
        steps=(120, 200, 40),
        lr=(2e-3, 3e-3, 1e-4),
    ),
    "base": Preset(
        size=Architecture(
            latent=64, channels=(64, 128, 256), blocks=2, width=384, depth=8, heads=6, dropout=0.0, causal=True
        ),
        pool="moments",
        pca_frames=2048,
        batch_size=(16, 16, 16),
        steps=(20000, 20000, 1000),
        lr=(5e-4, 3e-4, 1e-4),
    ),
    "large": Preset(
        size=Architecture(
            latent=128, channels=(96, 192, 384), blocks=4, width=1024, depth=16, heads=16, dropout=0.0, causal=True
        ),
        pool="moments",
        pca_frames=4096,
        batch_size=(8, 8, 8),
        steps=(50000, 50000, 2000),
        lr=(3e-4, 2e-4, 5e-5),
    ),
    "tff": Preset(
        size=Architecture(
            family="ancestor",
            intensity=True,
            latent=2640,
            channels=(4, 8, 16, 32),
            blocks=2,
            width=2640,
            depth=2,
            heads=16,
            dropout=0.1,
            positions=30,
        ),
        pool="cls",
        pca_frames=0,
        batch_size=(4, 1, 3),
        steps=(20000, 20000, 20000),
        lr=(1e-3, 1e-3, 1e-4),
    ),
    "hackathon": Preset(
        size=Architecture(
            family="ancestor",
            latent=2640,
            channels=(4, 8, 16, 32),
            blocks=2,
            width=2640,
            depth=16,
            heads=16,
            dropout=0.1,
            positions=21,
        ),
        pool="cls",
        pca_frames=0,
        batch_size=(8, 4, 4),
        steps=(20000, 20000, 20000),
        lr=(1e-3, 1e-4, 1e-4),
    ),
}
PresetName = Literal["tiny", "base", "large", "tff", "hackathon"]
SIZE_FLAGS = ("intensity", "latent", "channels", "blocks", "width", "depth", "heads", "dropout")


def check_architecture(size: Architecture) -> None:
    """Refuse sizes that cannot be built.

    Raises
    ------
    UsageError
        Which flag, and what it may be.
    """
    if size.family == "ancestor":
        reference = PRESETS["tff"].size
        for name in ("latent", "channels", "blocks", "width"):
            if getattr(size, name) != getattr(reference, name):
                raise UsageError(
                    f"--{name} {getattr(size, name)}: the presets tff and hackathon are kept as their authors built "
                    f"them ({name} {getattr(reference, name)}); leave it out, or choose tiny, base or large"
                )
    elif size.width % (2 * size.heads):
        raise UsageError(f"--width {size.width} --heads {size.heads}: the width must divide by twice the heads")
    elif len(size.channels) < 2 or any(c < 8 or c % 8 for c in size.channels):
        raise UsageError(f"--channels {size.channels}: at least two stages, each a multiple of 8")
    if size.width % size.heads:
        raise UsageError(f"--heads {size.heads}: must divide the width of {size.width}")


def with_flags(preset: str, given: dict[str, Any]) -> Architecture:
    """A preset's architecture with single values on top."""
    return Architecture(**(asdict(PRESETS[preset].size) | given))
