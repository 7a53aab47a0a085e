"""Everything before the loop: what is asked for is checked, then a run is begun or found again.

Nothing is written before all of it has been checked.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import distributed as dist

from shards.errors import OutputError, UsageError
from shards.loader import WindowLoader
from shards.splits import save_split
from shards.writer import write_atomic
from training.checkpoints.checkpoint import Checkpoints, Found
from training.checkpoints.export import CONFIG, MODEL, SPLIT, TARGET
from training.checkpoints.identity import Identity, identity_of
from training.checkpoints.transfer import transfer
from training.config import ResolvedConfig, architecture, to_json
from training.engine import environment
from training.engine.collective import first_rank_does
from training.engine.deepspeed_config import check_device, fill
from training.engine.engine import start_engine
from training.engine.environment import Place
from training.engine.randomness import seed_all
from training.finetuning.task import Finetuning, Validate
from training.inputs import Inputs, make_loader, open_inputs
from training.networks.model import BoldModel
from training.pretraining.task import Pretraining
from training.reporting.journal import Journal

logger = logging.getLogger(__name__)

DEEPSPEED_COPY = "deepspeed.json"
DEFAULT_VALIDATIONS = 5


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, ready for its next step.

    Attributes
    ----------
    config
        Resolved, with numbers of steps.
    engine
        DeepSpeed's, around `model`.
    step
        Optimizer steps done.
    best
        Fields of the best validation so far, as the checkpoint kept them; None in a run that begins.
    """

    config: ResolvedConfig
    inputs: Inputs
    place: Place
    loader: WindowLoader
    model: BoldModel
    engine: Any
    task: Pretraining | Finetuning
    journal: Journal
    checkpoints: Checkpoints
    step: int
    best: dict[str, Any] | None


def start(config: ResolvedConfig, deepspeed_values: dict[str, Any], validate: Validate) -> Run | None:
    """Begin a run, or find it where it was left; None if it is complete.

    Parameters
    ----------
    config
        Resolved.
    deepspeed_values
        As read.
    validate
        Phase 3's score, see `training.run.train`.

    Raises
    ------
    BoldstreamError
        A start that is refused.
    """
    inputs = open_inputs(config)
    place = environment.enter()
    check_device(deepspeed_values, place.device.type)
    loader = make_loader(config, place, inputs.shard_set, inputs.train_runs, "train")
    check_window(config, loader)
    config = _with_steps(config, loader)
    deepspeed_values = fill(deepspeed_values, config, place.world_size)
    hashes = inputs.hashes | {"window_frames": loader.window_frames}
    identity = identity_of(config, hashes, deepspeed_values, place.world_size)
    checkpoints = Checkpoints(config.out, identity, config.keep_checkpoints, place)
    found = first_rank_does(lambda: _open_folder(config, checkpoints), place)
    if found is not None and (config.out / MODEL).exists():
        logger.info("%s: this run is complete; nothing to do", config.out)
        return None

    seed_all(config.seed)
    model = BoldModel(
        size=architecture(config),
        mask_XYZ=inputs.shard_set.mask,
        phase=config.phase,
        pool=config.pool,
        num_outputs=inputs.target.num_outputs if inputs.target else 0,
        direction=config.phase == 2 and config.direction_weight > 0,
    )
    journal = Journal(config.out, place.is_first)
    task = _task(config, place, inputs, validate)
    if found is None:
        first_rank_does(lambda: _write_start(config, inputs, identity, deepspeed_values), place)
        journal.rewind(0)
        told = {"transfer": transfer(model, inputs.init)} if inputs.init else {}
        told |= _prepare(task, model, config, place, inputs)
        journal.write("start", 0, parameters=sum(p.numel() for p in model.parameters()), **told)
    model.to(place.device)
    if config.channels_last:
        model.memory_format = torch.channels_last_3d
    engine = start_engine(model, config, deepspeed_values, int(config.steps or 0))
    seed_all(config.seed + 1 + place.rank)
    step, best = 0, None
    if found is not None:
        step, state = checkpoints.resume(engine, found)
        # windows of a step are checked already; of a batch they may be other than before
        loader.load_state_dict(state["loader"] | {"global_batch": loader.global_batch})
        best = state["best"]
        journal.rewind(step)
        logger.info("%s: continuing after step %d of %d", config.out, step, config.steps)
    return Run(
        config=config,
        inputs=inputs,
        place=place,
        loader=loader,
        model=model,
        engine=engine,
        task=task,
        journal=journal,
        checkpoints=checkpoints,
        step=step,
        best=best,
    )


def check_window(config: ResolvedConfig, loader: WindowLoader) -> None:
    """Refuse windows that the ancestors' learned positions do not reach."""
    positions = architecture(config).positions
    if positions is not None and config.phase > 1 and loader.window_frames >= positions:
        raise UsageError(
            f"--window {config.window}: {loader.window_frames} frames, the preset {config.preset} has positions for "
            f"{positions - 1}; choose shorter windows"
        )


def _task(config: ResolvedConfig, place: Place, inputs: Inputs, validate: Validate) -> Pretraining | Finetuning:
    val_loader = make_loader(config, place, inputs.shard_set, inputs.val_runs, "tile") if inputs.val_runs else None
    if inputs.target is None:
        return Pretraining(config, place, val_loader)
    assert val_loader is not None
    return Finetuning(
        config,
        place,
        shard_set=inputs.shard_set,
        target=inputs.target,
        train=inputs.train,
        val=inputs.val,
        val_loader=val_loader,
        validate=validate,
    )


def _prepare(
    task: Pretraining | Finetuning, model: BoldModel, config: ResolvedConfig, place: Place, inputs: Inputs
) -> dict[str, Any]:
    """Whatever has a closed form: principal components (phase 1, on rank 0), probe (phase 3, all ranks)."""
    if isinstance(task, Finetuning):
        tiles = make_loader(config, place, inputs.shard_set, inputs.train_runs, "tile")
        return {"probe": task.prepare(model, tiles)}
    windows = make_loader(config, place, inputs.shard_set, inputs.train_runs, "train", alone=True)
    found = first_rank_does(lambda: task.prepare(model, windows), place)
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, 0)
    return found


def _open_folder(config: ResolvedConfig, checkpoints: Checkpoints) -> Found | None:
    """The checkpoint to continue from, or None for a start; refuses a folder that a start would overwrite."""
    if config.resume == "auto":
        found = checkpoints.latest()
        if found is not None:
            return found
    if config.out.exists() and not config.out.is_dir():
        raise OutputError(f"--out {config.out}: not a folder; choose another")
    holds_run = (config.out / MODEL).exists() or (checkpoints.folder / "latest").exists()
    if holds_run or (config.out.is_dir() and any(config.out.iterdir()) and not (config.out / CONFIG).exists()):
        raise OutputError(
            f"--out {config.out}: holds a run or other files; choose another folder, or --resume auto to continue a run"
        )
    return None


def _write_start(config: ResolvedConfig, inputs: Inputs, identity: Identity, deepspeed_values: dict[str, Any]) -> None:
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--out {config.out}: {error.strerror}; choose another folder") from None
    more = {"world_size": identity.layout.world_size, "software": identity.software}
    record = to_json(config) | identity.same["inputs"] | more
    write_atomic(config.out / CONFIG, json.dumps(record, indent=1) + "\n")
    write_atomic(config.out / DEEPSPEED_COPY, json.dumps(deepspeed_values, indent=1) + "\n")
    save_split(config.out / SPLIT, inputs.split)
    if inputs.target is not None:
        write_atomic(config.out / TARGET, json.dumps(inputs.target.to_json(), indent=1) + "\n")


def _with_steps(config: ResolvedConfig, loader: WindowLoader) -> ResolvedConfig:
    """Steps of the whole run from --epochs, and how often to validate."""
    per_epoch = loader.steps_per_epoch // config.accumulation
    if not per_epoch:
        raise UsageError(
            f"an epoch has {loader.steps_per_epoch} batches of {loader.global_batch} windows, --accumulation "
            f"{config.accumulation} asks for more in one optimizer step; lower it or --batch_size"
        )
    steps = config.steps
    if steps is None:
        steps = max(1, round(float(config.epochs or 0) * per_epoch))
    return replace(config, steps=steps, val_every=config.val_every or max(1, steps // DEFAULT_VALIDATIONS))
