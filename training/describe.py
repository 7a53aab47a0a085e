"""What a model costs on a shard set, told before anything is trained or written.

The model is built and run on torch's `meta` device: shapes and operations are real, nothing is allocated or computed,
so that a model of any size is described in seconds on a machine of any size.

Shapes: B window (1 here), L frame, V voxel.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from shards import order
from shards.errors import UsageError
from shards.reader import ShardSet
from shards.union import open_sets
from training.config import ResolvedConfig, architecture
from training.engine.parameter_groups import parameter_groups
from training.finetuning.targets import learn_target
from training.networks.model import BoldModel, recompute_in_backward
from training.pretraining import objectives

RANKS = (1, 8, 64)
HALF_STAGES = (1, 2, 3)
"""ZeRO stages that train in bf16; stage 0 is refused (see `training.engine.deepspeed_config`)."""
BYTES = 4
HALF_BYTES = 2
MOMENTS = 2


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the table: a title, the names of its columns, and rows of a label and its cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def describe(config: ResolvedConfig) -> str:
    """Parameters, operations, memory and bytes of the model of a phase on a shard set.

    Parameters
    ----------
    config
        Resolved; `out`, `init` and `target` may be missing.

    Returns
    -------
    str
        A table for people, in GB (1e9 bytes) and GFLOP (a multiply-add counts 2).

    Raises
    ------
    BoldstreamError
        The shard set cannot be opened, or a window does not fit it or the model.
    """
    with open_sets(config.shards, None, config.subjects) as shard_set:
        lengths = order.parse_window(config.window, [entry.tr_s for entry in shard_set.runs])
        num_frames = int(lengths.max())
        make = _Make(config, shard_set, num_frames)
        sections = (
            _operations(make, config),
            _activations(make, int(config.batch_size or 1)),
            _states(*count(make.model())),
            _reading(shard_set, lengths, config.window),
        )
        grid = " x ".join(str(n) for n in shard_set.grid.shape)
        head = (
            f"{config.preset}, phase {config.phase}, grid {grid}, V = {shard_set.num_voxels:,} voxels in the mask, "
            f"window of {num_frames} frames"
        )
    return "\n".join([head, *_lines(sections)])


def num_parameters(config: ResolvedConfig, shard_set: ShardSet) -> int:
    """Parameters of the model of a phase on a shard set; nothing is allocated."""
    return count(_Make(config, shard_set, num_frames=1).model())[0]


def count(model: BoldModel) -> tuple[int, int]:
    """Parameters of a model: all, and those that learn."""
    return (
        sum(parameter.numel() for parameter in model.parameters()),
        sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    )


def operations(model: BoldModel, inputs: dict[str, Any], *, backward: bool) -> dict[str, int]:
    """Floating-point operations of one window: of matrix products and convolutions, attention as matrix products.

    Returns
    -------
    dict
        By part of the model, and `total`.
    """
    with FlopCounterMode(display=False) as counter:
        loss = _loss(model(**inputs))
        if backward and loss.requires_grad:
            loss.backward()
    found = counter.get_flop_counts()
    parts = {name: sum(found.get(f"BoldModel.{name}", {}).values()) for name, _ in model.named_children()}
    return parts | {"total": counter.get_total_flops()}


def activation_bytes(model: BoldModel, inputs: dict[str, Any]) -> int:
    """Bytes that the backward pass of one window needs from the forward pass, each storage once.

    Parameters and buffers, which are there anyway, do not count.
    """
    kept: WeakSet[_Kept] = WeakSet()  # what the graph drops, since nothing before it learns, goes from here too

    def keep(tensor: Tensor) -> _Kept:
        kept.add(own := _Kept(tensor))
        return own

    with saved_tensors_hooks(keep, lambda own: own.tensor):
        loss = _loss(model(**inputs))
    storages = {own.tensor.untyped_storage()._cdata: own.tensor.untyped_storage().nbytes() for own in kept}
    del loss  # it held the graph until here
    present = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    return sum(size for storage, size in storages.items() if storage not in present)


def state_bytes(num_parameters: int, num_trainable: int, *, stage: int, ranks: int, half: bool) -> int:
    """Bytes of weights, gradients and AdamW's moments on one rank, as DeepSpeed keeps them without offload.

    Parameters
    ----------
    num_parameters, num_trainable
        All, and those that learn.
    stage
        ZeRO stage: 1 divides the optimizer's state among the ranks, 2 the gradients too, 3 the weights too.
        From stage 1 on DeepSpeed keeps a second, float32 copy of the weights with the optimizer's state, also in
        float32 training.
    ranks
        Number of ranks.
    half
        Weights and gradients in bf16.
    """
    size = HALF_BYTES if half else BYTES
    masters = 1 if stage else 0
    optimizer = (MOMENTS + masters) * BYTES * num_trainable / (ranks if stage >= 1 else 1)
    gradients = size * num_trainable / (ranks if stage >= 2 else 1)
    weights = size * num_parameters / (ranks if stage >= 3 else 1)
    return math.ceil(optimizer + gradients + weights)


def window_bytes(shard_set: ShardSet, lengths: order.Int64) -> tuple[float, int]:
    """Mean stored bytes of a training window, and windows of an epoch, over all runs of a shard set.

    Parameters
    ----------
    shard_set
        Opened.
    lengths
        Window length in frames for each run.

    Raises
    ------
    UsageError
        No run is as long as its window.
    """
    counts = order.natural_counts([entry.num_frames for entry in shard_set.runs], lengths)
    total = int(counts.sum())
    if not total:
        longest = max(entry.num_frames for entry in shard_set.runs)
        raise UsageError(f"{shard_set.location}: the longest run has {longest} frames, no window fits; lower --window")
    sizes = [
        entry.bold_bytes / entry.num_frames * length
        for entry, length in zip(shard_set.runs, lengths.tolist(), strict=True)
    ]
    return float((counts * sizes).sum() / total), total


class _Kept:
    """A tensor that the graph holds."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _Make:
    """Builds the model and one window of input, without memory."""

    def __init__(self, config: ResolvedConfig, shard_set: ShardSet, num_frames: int) -> None:
        self.config, self.shard_set, self.num_frames = config, shard_set, num_frames
        self.num_outputs = _num_outputs(config, shard_set)
        self._made: dict[tuple[bool, bool], BoldModel] = {}

    def model(self, *, half: bool = False, recompute: bool = False) -> BoldModel:
        if (half, recompute) not in self._made:
            self._made[half, recompute] = self._model(half, recompute)
        return self._made[half, recompute]

    def _model(self, half: bool, recompute: bool) -> BoldModel:
        with torch.device("meta"):
            model = BoldModel(
                size=architecture(self.config),
                mask_XYZ=self.shard_set.mask,
                phase=self.config.phase,
                pool=str(self.config.pool),
                num_outputs=self.num_outputs,
            )
        model.to("meta")  # tables that numpy made
        parameter_groups(model, self.config)  # freezes what does not learn
        if half:
            for parameter in model.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        if recompute:
            recompute_in_backward(model)
        return model

    def inputs(self) -> dict[str, Tensor | None]:
        num_voxels, intensity = self.shard_set.num_voxels, bool(self.config.intensity)
        flat_BV = torch.empty(1, num_voxels, device="meta")
        shape = (1, self.num_frames, num_voxels)
        hidden_BL = torch.empty(shape[:2], dtype=torch.bool, device="meta")
        return {
            "q": torch.empty(shape, dtype=getattr(torch, self.shard_set.manifest.dtype), device="meta"),
            "gain": flat_BV,
            "shift": None,
            "num_valid": torch.empty(1, dtype=torch.int64, device="meta"),
            "tr_s": torch.empty(1, device="meta"),
            "level": flat_BV if intensity else None,
            "spread": flat_BV if intensity else None,
            "hidden": hidden_BL if self.config.phase == 2 else None,
        }


def _loss(out: dict[str, Tensor]) -> Tensor:
    """A loss of the phase's kind; every one keeps the same for the backward pass."""
    if "output" in out:
        return out["output"].square().sum()
    return objectives.elementwise("huber", out["reconstruction"], out["residual"]).mean()


def _num_outputs(config: ResolvedConfig, shard_set: ShardSet) -> int:
    """K of phase 3; 1 without a target."""
    if config.target is None:
        return 1
    values = shard_set.phenotype(config.target)
    subjects = sorted({entry.subject for entry in shard_set.runs})
    return learn_target(config.target, values, subjects, config.target_kind).num_outputs


def _operations(make: _Make, config: ResolvedConfig) -> Section:
    model, inputs = make.model(), make.inputs()
    forward = operations(model, inputs, backward=False)
    both = operations(model, inputs, backward=True)
    again = operations(make.model(recompute=True), inputs, backward=True)
    rows = []
    for name, part in model.named_children():
        if name != "volume":
            mine = [sum(p.numel() for p in part.parameters() if p.requires_grad or every) for every in (True, False)]
            rows.append((name, *(f"{n:,}" for n in mine), _giga(forward[name]), _giga(both[name])))
    rows.append(("all", *(f"{n:,}" for n in count(model)), _giga(forward["total"]), _giga(both["total"])))
    rows.append(("all, with --recompute", "", "", "", _giga(again["total"])))
    columns = ("parameters", "trainable", "forward", "forward+backward")
    return Section(
        title=f"one window, GFLOP{' (--recompute is set)' if config.recompute else ''}",
        columns=columns,
        rows=tuple(rows),
    )


def _activations(make: _Make, batch_size: int) -> Section:
    inputs, both = make.inputs(), (False, True)
    kept = {
        recompute: [activation_bytes(make.model(half=half, recompute=recompute), inputs) for half in both]
        for recompute in both
    }
    rows = [
        (f"{name}{', with --recompute' if recompute else ''}", *(_giga(times * n) for n in kept[recompute]))
        for name, times in (("one window", 1), (f"--batch_size {batch_size}", batch_size))
        for recompute in both
    ]
    return Section(title="kept for the backward pass, GB", columns=("fp32", "bf16"), rows=tuple(rows))


def _states(num_parameters: int, num_trainable: int) -> Section:
    ranks = sorted({1, _ranks()}) if _ranks() > 1 else RANKS
    rows = [
        (
            f"ZeRO {stage}, {'bf16' if half else 'fp32'}",
            *(_giga(state_bytes(num_parameters, num_trainable, stage=stage, ranks=n, half=half)) for n in ranks),
        )
        for half, stages in ((False, range(4)), (True, HALF_STAGES))
        for stage in stages
    ]
    columns = tuple(f"{n} rank{'s' if n > 1 else ''}" for n in ranks)
    return Section(title="weights, gradients, AdamW on each rank, GB", columns=columns, rows=tuple(rows))


def _reading(shard_set: ShardSet, lengths: order.Int64, window: str) -> Section:
    per_window, windows = window_bytes(shard_set, lengths)
    rows = (
        ("one window", _giga(per_window), ""),
        ("an epoch of all runs", _giga(per_window * windows), f"{windows:,}"),
    )
    return Section(title=f"read from the shards (--window {window})", columns=("GB", "windows"), rows=rows)


def _ranks() -> int:
    """Number of ranks as the launcher tells it."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_STEP_NUM_TASKS", "1")))


def _giga(value: float) -> str:
    """Three significant digits of a billionth, never with an exponent."""
    value /= 1e9
    digits = 0 if not value else max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{digits}f}"


def _lines(sections: Sequence[Section]) -> list[str]:
    """All sections with the same widths of columns."""
    table = [line for part in sections for line in ((part.title, *part.columns), *part.rows)]
    first = max(len(line[0]) for line in table)
    width = max(len(cell) for line in table for cell in line[1:])
    lines: list[str] = []
    for part in sections:
        lines.append("")
        for line in ((part.title, *part.columns), *part.rows):
            lines.append(f"{line[0]:<{first}}" + "".join(f"  {cell:>{width}}" for cell in line[1:]))
    return lines
