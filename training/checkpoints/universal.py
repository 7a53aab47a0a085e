"""A checkpoint loaded on another number of ranks, through DeepSpeed's universal checkpoint.

ZeRO cuts the optimizer's state into a part a rank. DeepSpeed's converter puts the parts together: a
folder of up to four small files for each parameter, which lives only while it is loaded. Its loader
leaves out what has no optimizer state (buffers, frozen parameters), and at stage 3 gives every
parameter group the settings of the first and one step counter that each of them counts up; all of that is
put right here.
"""

from __future__ import annotations

import logging
import os
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from shards.errors import CorruptShardError, OutputError
from training.engine.collective import first_rank_does
from training.engine.environment import Place

logger = logging.getLogger(__name__)

# what the converter asks for in the client state at stages 1 and 2
INFO = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.4}}


def parameter_groups_of(engine: Any) -> list[dict[str, Any]]:
    """The optimizer's groups without their parameters: what `load_converted` puts back."""
    return [{key: value for key, value in group.items() if key != "params"} for group in engine.optimizer.param_groups]


def load_converted(engine: Any, folder: Path, tag: str, place: Place) -> tuple[str | None, dict[str, Any]]:
    """Convert a checkpoint of ZeRO 1, 2 or 3, load it, and remove what was converted; every rank must call it.

    Parameters
    ----------
    engine
        Fresh DeepSpeed engine.
    folder, tag
        The checkpoint is `folder/tag`; the converted one lies beside it for the time of loading.

    Returns
    -------
    path, client_state
        As DeepSpeed's `load_checkpoint`; its client state holds `groups` of `parameter_groups_of`.

    Raises
    ------
    OutputError
        No room for the converted files.
    """
    with _converted(folder, tag, place) as converted:
        engine.load_universal_checkpoint = lambda: True
        loaded, client_state = engine.load_checkpoint(str(converted), tag=tag)
        del engine.load_universal_checkpoint
    if loaded is not None:
        _mend_groups(engine, client_state["groups"])
        _load_the_rest(engine.module, folder, tag, place)
    return loaded, client_state


def _mend_groups(engine: Any, groups: list[dict[str, Any]]) -> None:
    """Own values for each group: its settings, and a counter of steps that no other group counts up as well."""
    for group, saved in zip(engine.optimizer.param_groups, groups, strict=True):
        group.update(saved)
    for state in engine.optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()


@contextmanager
def _converted(folder: Path, tag: str, place: Place) -> Iterator[Path]:
    """The folder that holds the converted checkpoint under its tag."""
    target = folder / f"partial-universal-{tag}"

    def convert() -> None:
        from deepspeed.checkpoint import ds_to_universal

        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False}
        options |= {"strict": True, "inject_missing_state": False}
        paths = {"input_folder": str(folder / tag), "output_folder": str(target / tag)}
        try:
            with _quiet():
                ds_to_universal.main(Namespace(**paths, **options))
        except OSError as error:
            raise OutputError(f"{target}: {error.strerror or error}; make room for the converted checkpoint") from error

    try:
        first_rank_does(convert, place)
        yield target
        dist.barrier()
    finally:
        if place.is_first:
            shutil.rmtree(target, ignore_errors=True)


def _load_the_rest(module: torch.nn.Module, folder: Path, tag: str, place: Place) -> None:
    """Buffers and frozen parameters, from rank 0 to all."""
    import deepspeed

    weights = _full_state(folder, tag) if place.is_first else {}
    persistent = module.state_dict().keys()
    rest: dict[str, Tensor] = {name: buffer for name, buffer in module.named_buffers() if name in persistent}
    rest |= {name: parameter for name, parameter in module.named_parameters() if not parameter.requires_grad}
    missing = first_rank_does(lambda: sorted(rest.keys() - weights.keys()), place)
    if missing:
        raise CorruptShardError(f"{folder / tag}: holds no {missing[0]}; choose another --out to start anew")
    for name, tensor in rest.items():
        sharded = hasattr(tensor, "ds_id")
        with deepspeed.zero.GatheredParameters([tensor], modifier_rank=0, enabled=sharded):
            if place.is_first:
                tensor.data.copy_(weights[name])
            if not sharded:
                dist.broadcast(tensor.data, 0)


def _full_state(folder: Path, tag: str) -> dict[str, Tensor]:
    """All parameters and buffers of a checkpoint; at stages 1 and 2 one file has them whole."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    whole = folder / tag / "mp_rank_00_model_states.pt"
    if whole.exists():
        return torch.load(whole, map_location="cpu", weights_only=False)["module"]
    with _quiet():
        return get_fp32_state_dict_from_zero_checkpoint(str(folder), tag)


@contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed's tools print and draw progress bars."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
