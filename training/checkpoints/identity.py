"""What a run and its continuation must share, and what may change between them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from shards.errors import MismatchError
from training.config import FREE_ON_RESUME, ResolvedConfig, to_json
from training.engine.deepspeed_config import zero_stage

SOFTWARE = ("boldstream", "deepspeed", "torch")
# they say how a step's windows are cut into ranks and batches, or what is told about the run
FREE_IN_DEEPSPEED = frozenset(
    {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "checkpoint", "comms_logger"}
    | {"csv_monitor", "dump_state", "flops_profiler", "log_level", "memory_breakdown", "steps_per_print"}
    | {"tensorboard", "wall_clock_breakdown", "wandb"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How the work is cut; free to change as far as `check_continues` says."""

    world_size: int
    batch_size: int
    accumulation: int
    zero_stage: int

    @property
    def windows_per_step(self) -> int:
        """Windows of an optimizer step, all ranks together."""
        return self.world_size * self.batch_size * self.accumulation


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """A run, as its checkpoints remember it.

    Attributes
    ----------
    same
        JSON values that must be equal in a continuation.
    layout
        How the work was cut.
    software
        Versions, for information.
    """

    same: dict[str, Any]
    layout: Layout
    software: dict[str, str]

    def to_json(self) -> str:
        """As the text of `identity.json`."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Identity:
        """Read `to_json`'s text; ValueError, KeyError or TypeError if it is not that."""
        values = json.loads(text)
        layout = Layout(**{name: int(value) for name, value in values["layout"].items()})
        return cls(same=dict(values["same"]), layout=layout, software=dict(values["software"]))


def identity_of(
    config: ResolvedConfig, inputs: dict[str, Any], deepspeed_values: dict[str, Any], world_size: int
) -> Identity:
    """Identity of the run that these flags ask for.

    Parameters
    ----------
    config
        Resolved, with its number of steps.
    inputs
        Hashes of what goes in.
    deepspeed_values
        Filled DeepSpeed configuration.
    world_size
        Number of ranks.
    """
    layout = Layout(
        world_size=world_size,
        batch_size=int(config.batch_size or 0),
        accumulation=config.accumulation,
        zero_stage=zero_stage(deepspeed_values),
    )
    free = FREE_ON_RESUME | {"batch_size", "accumulation"}
    flags = {name: value for name, value in to_json(config).items() if name not in free}
    engine = {name: value for name, value in deepspeed_values.items() if name not in FREE_IN_DEEPSPEED}
    if "zero_optimization" in engine:
        engine["zero_optimization"] = {k: v for k, v in engine["zero_optimization"].items() if k != "stage"}
    return Identity(
        same=json.loads(json.dumps({**flags, "inputs": inputs, "deepspeed": engine})),
        layout=layout,
        software={name: version(name) for name in SOFTWARE},
    )


def check_continues(found: Identity, now: Identity, where: object) -> None:
    """Refuse a continuation that is not one.

    The number of ranks, --batch_size and --accumulation may change as long as their product, the windows
    of an optimizer step, stays; ZeRO stages 1 and 2 may change into each other.

    Raises
    ------
    MismatchError
        Each difference is named.
    """
    before, after = _flat(found.same), _flat(now.same)
    differing = [
        f"{key}: found {before.get(key)}, now {after.get(key)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    if found.layout.windows_per_step != now.layout.windows_per_step:
        differing.append(
            f"windows of an optimizer step (ranks * batch_size * accumulation): found {_product(found.layout)}, "
            f"now {_product(now.layout)}"
        )
    stages = found.layout.zero_stage, now.layout.zero_stage
    if stages[0] != stages[1] and {*stages} != {1, 2}:
        differing.append(f"ZeRO stage: found {stages[0]}, now {stages[1]} (only 1 and 2 change into each other)")
    if differing:
        raise MismatchError(
            f"{where} holds a run that differs: {'; '.join(differing)}; restore these, or choose another --out"
        )


def _product(layout: Layout) -> str:
    return f"{layout.world_size} * {layout.batch_size} * {layout.accumulation} = {layout.windows_per_step}"


def _flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested values under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat
