"""The tensors of one step, made once and filled again and again.

Shapes: B window, L frame, V voxel, X Y Z a box on the grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch

from shards.affine import Gain
from shards.dense import VolumeType

Device = torch.device | str


@dataclass(kw_only=True, slots=True)
class Batch:
    """Windows of one step on one rank. The tensors are reused: valid until the next batch is taken."""

    q: torch.Tensor
    """[B, L, V] as stored; frames past `num_valid` are 0."""
    gain: torch.Tensor
    """[B, V] float32: the residual is `gain * q + shift`."""
    shift: torch.Tensor | None
    """[B, V] float32, or None where it is 0 (every dtype but float32)."""
    run: torch.Tensor
    """[B] int64, number in `ShardSet.runs`; -1 marks a row that only fills up the batch."""
    start: torch.Tensor
    """[B] int64, first frame."""
    num_valid: torch.Tensor
    """[B] int64, frames that are real."""
    tr_s: torch.Tensor
    """[B] float32, repetition time in seconds."""
    level: torch.Tensor | None = None
    """[B, V] float32, if asked for: the intensity is `level + spread * residual`."""
    spread: torch.Tensor | None = None
    """[B, V] float32, if asked for."""
    volume: torch.Tensor | None = None
    """[B, L, X, Y, Z] residuals in a box, if asked for; 0 outside the mask and past `num_valid`."""
    _gains: list[Gain | None] = field(default_factory=list)
    """What stands in each row of `gain`."""
    _copied: Any = None
    """CUDA event behind the last copy to a device; a row is not filled again before it."""

    def to(self, device: Device) -> Batch:
        """Copy to a device; from pinned memory this does not wait, and the loader takes care of what is on its way.

        On the CPU it is the batch itself, so still valid only until the next is taken.
        """
        device = torch.device(device)
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {
            each.name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for each in fields(self)
            if not each.name.startswith("_")
            for value in [getattr(self, each.name)]
        }
        if device.type == "cuda":
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(device))
        return Batch(**moved)

    def wait_for_copies(self) -> None:
        """Return when no copy reads these tensors any more."""
        if self._copied is not None:
            self._copied.synchronize()


def empty_batch(
    num_windows: int,
    num_frames: int,
    num_voxels: int,
    *,
    dtype: str,
    intensity: bool = False,
    box: tuple[int, int, int] | None = None,
    volume_type: VolumeType = "float16",
    pinned: bool = False,
) -> Batch:
    """A batch of zeros; `pinned`: page-locked, for asynchronous copies to a GPU."""
    flat = (num_windows, num_voxels)

    def zeros(shape: tuple[int, ...], kind: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=kind, pin_memory=pinned)

    volume = None if box is None else zeros((num_windows, num_frames, *box), getattr(torch, volume_type))
    return Batch(
        q=zeros((num_windows, num_frames, num_voxels), getattr(torch, dtype)),
        gain=zeros(flat, torch.float32),
        shift=zeros(flat, torch.float32) if dtype == "float32" else None,
        run=zeros((num_windows,), torch.int64),
        start=zeros((num_windows,), torch.int64),
        num_valid=zeros((num_windows,), torch.int64),
        tr_s=zeros((num_windows,), torch.float32),
        level=zeros(flat, torch.float32) if intensity else None,
        spread=zeros(flat, torch.float32) if intensity else None,
        volume=volume,
        _gains=[None] * num_windows,
    )
