"""The training loop of all phases; reads from top to bottom."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from shards.errors import BoldstreamError, OutputError
from shards.loader import Batch, WindowLoader
from shards.splits import save_split
from shards.writer import write_atomic
from training import environment
from training.checkpoint import Checkpoints
from training.collective import first_rank_does, gather
from training.config import EXIT_DIVERGED, EXIT_PREEMPTED, FREE_ON_RESUME, TrainConfig, architecture, resolve, to_json
from training.deepspeed_config import check_device, fill, read_deepspeed_config, with_its_batch
from training.engine import gather_weights, start_engine
from training.environment import Place
from training.export import CONFIG, MODEL, SPLIT, TARGET, save_model
from training.finetuning import Finetuning, Validate
from training.inputs import Inputs, make_loader, open_inputs
from training.interruption import Interruption
from training.journal import Journal
from training.model import BoldModel
from training.pretraining import Losses, Pretraining
from training.progress import Progress
from training.transfer import transfer

logger = logging.getLogger(__name__)

DEEPSPEED_COPY = "deepspeed.json"
DEFAULT_VALIDATIONS = 5


class NonFiniteLossError(BoldstreamError):
    """The loss became infinite or not a number."""

    exit_code = EXIT_DIVERGED


@dataclass(kw_only=True)
class Best:
    """Phase 3: the best validation so far."""

    score: float = -np.inf
    step: int = -1
    file: str | None = None
    worse: int = 0


def train(config: TrainConfig, validate: Validate) -> int:
    """Train one phase, or continue it.

    Parameters
    ----------
    config
        The flags.
    validate
        Phase 3: (truth `(S,)`, output `(S, K)`, kind) -> score of the validation subjects, higher is better.

    Returns
    -------
    int
        0, or 85 when a signal asked to stop and a checkpoint was saved.

    Raises
    ------
    BoldstreamError
        A start that is refused (nothing is written then), or a loss that is not finite.
    """
    # What is asked for, checked before anything is written
    deepspeed_values = read_deepspeed_config(config.deepspeed_config)
    config = resolve(with_its_batch(config, deepspeed_values))
    inputs = open_inputs(config)
    place = environment.enter()
    check_device(deepspeed_values, place.device.type)
    loader = make_loader(config, place, inputs.shard_set, inputs.train_runs, "train")
    config = _with_steps(config, loader)
    num_steps, val_every = int(config.steps or 0), int(config.val_every or 1)
    deepspeed_values = fill(deepspeed_values, config, place.world_size)
    identity = _identity(config, inputs, deepspeed_values, place, loader)
    checkpoints = Checkpoints(config.out, identity, config.keep_checkpoints, place)
    tag = first_rank_does(lambda: _open_folder(config, checkpoints), place)
    if tag is not None and (config.out / MODEL).exists():
        logger.info("%s: this run is complete; nothing to do", config.out)
        return 0

    # Model, its start, and the engine
    _seed(config.seed)
    model = BoldModel(
        size=architecture(config),
        mask_XYZ=inputs.shard_set.mask,
        phase=config.phase,
        pool=config.pool,
        num_outputs=inputs.target.num_outputs if inputs.target else 0,
    )
    journal = Journal(config.out, place.is_first)
    task = _task(config, place, inputs, validate)
    if tag is None:
        first_rank_does(lambda: _write_start(config, inputs, identity, deepspeed_values), place)
        journal.rewind(0)
        started = {"transfer": transfer(model, inputs.init)} if inputs.init else {}
        started |= _prepare(task, model, config, place, inputs)
        journal.write("start", 0, parameters=sum(p.numel() for p in model.parameters()), **started)
    model.to(place.device)
    engine = start_engine(model, config, deepspeed_values, num_steps)
    _seed(config.seed + 1 + place.rank)
    step, best = 0, Best()
    if tag is not None:
        step, state = checkpoints.resume(engine, tag)
        loader.load_state_dict(state["loader"])
        best = Best(**state["best"])
        journal.rewind(step)
        logger.info("%s: continuing after step %d of %d", config.out, step, num_steps)
    elif config.phase == 3:
        best = _validate(engine, task, journal, checkpoints, best, step)

    # The loop: one turn is one optimizer step
    progress = Progress(num_steps, step, loader)
    batches = _endless(loader)
    saved_at = step if tag is not None else None
    with Interruption() as interruption:
        while step < num_steps and best.worse < config.patience:
            engine.train()
            loss = 0.0
            for _ in range(config.accumulation):
                batch = next(batches)
                losses = task.losses(engine, batch, step)
                mean, stop = _agree(losses, batch, interruption.asked, inputs, place, step)
                loss += mean / config.accumulation
                engine.backward(losses.per_window.mean())
                engine.step()
                progress.count(batch)
            step += 1
            if step % config.log_every == 0 or step == num_steps:
                _log_step(journal, engine, progress, losses, loss, step)
            if step % val_every == 0 or step == num_steps:
                best = _validate(engine, task, journal, checkpoints, best, step)
            if stop or step % config.save_every == 0:
                checkpoints.save(engine, step, {"loader": loader.state_dict(), "best": vars(best)}, best.file)
                saved_at = step
            if stop:
                logger.info("%s: stopped by a signal after step %d; the same command continues", config.out, step)
                return EXIT_PREEMPTED

    # The end: a last checkpoint, and the weights that travel
    if saved_at != step:
        checkpoints.save(engine, step, {"loader": loader.state_dict(), "best": vars(best)}, best.file)
    weights = gather_weights(engine)

    def finish() -> None:
        final = checkpoints.load_best(best.file) if best.file else weights
        chosen = best.step if best.file else step
        facts = {"step": chosen, "window": config.window, **inputs.hashes, **_score_of(best)}
        save_model(config.out, model, final, facts)
        journal.write("end", step, chosen_step=chosen, **_score_of(best))

    first_rank_does(finish, place)
    logger.info("%s: done after %d steps", config.out, step)
    return 0


def _agree(losses: Losses, batch: Batch, asked: bool, inputs: Inputs, place: Place, step: int) -> tuple[float, bool]:
    """Mean loss over all ranks, and whether any rank was asked to stop.

    Raises
    ------
    NonFiniteLossError
        On every rank, naming the runs whose loss is not finite on any.
    """
    loss_B = losses.per_window.detach().double()
    shared = torch.stack([loss_B.mean(), loss_B.new_tensor(float(asked))])
    dist.all_reduce(shared)
    mean, stop = (shared / place.world_size).tolist()
    if np.isfinite(mean):
        return mean, stop > 0
    broken = [run for run, loss in zip(batch.run.tolist(), loss_B.tolist(), strict=True) if not np.isfinite(loss)]
    runs = sorted({run for part in gather(broken, place) for run in part})
    names = ", ".join(inputs.shard_set.runs[run].run_id for run in runs[:10])
    raise NonFiniteLossError(
        f"step {step}: the loss is {mean} in windows of {names}; look at these runs, or lower --lr; "
        "the last checkpoint is kept"
    )


def _validate(engine: Any, task: Any, journal: Journal, checkpoints: Checkpoints, best: Best, step: int) -> Best:
    """Validate; phase 3 keeps the weights if they are better than all before."""
    engine.eval()
    with torch.no_grad():
        found = task.validate(engine)
    if not found:
        return best
    journal.write("val", step, **found)
    logger.info("step %d validation: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    if "score" not in found:
        return best
    if not found["score"] > best.score:
        return replace(best, worse=best.worse + 1)
    weights = gather_weights(engine)
    name = first_rank_does(lambda: checkpoints.save_best(step, weights), checkpoints.place)
    return Best(score=found["score"], step=step, file=name)


def _log_step(journal: Journal, engine: Any, progress: Progress, losses: Losses, loss: float, step: int) -> None:
    norm = engine.get_global_grad_norm()
    values = {"loss": loss, **{name: float(value) for name, value in losses.terms.items()}}
    values |= {"lr": engine.get_lr()[0], "grad_norm": None if norm is None else float(norm)}
    speed = progress.report(step)
    journal.write("train", step, **values, **speed)
    if engine.monitor.enabled and journal.writes:
        engine.monitor.write_events([(f"Train/{name}", values[name], step) for name in ("loss", "lr")])
    logger.info("%s", progress.line(step, loss, speed))


def _task(config: TrainConfig, place: Place, inputs: Inputs, validate: Validate) -> Pretraining | Finetuning:
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
    task: Pretraining | Finetuning, model: BoldModel, config: TrainConfig, place: Place, inputs: Inputs
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


def _open_folder(config: TrainConfig, checkpoints: Checkpoints) -> str | None:
    """Tag to continue from, or None for a start; refuses a folder that a start would overwrite."""
    if config.resume == "auto":
        tag = checkpoints.latest()
        if tag is not None:
            return tag
    if config.out.exists() and not config.out.is_dir():
        raise OutputError(f"--out {config.out}: not a folder; choose another")
    holds_run = (config.out / MODEL).exists() or (checkpoints.folder / "latest").exists()
    if holds_run or (config.out.is_dir() and any(config.out.iterdir()) and not (config.out / CONFIG).exists()):
        raise OutputError(
            f"--out {config.out}: holds a run or other files; choose another folder, or --resume auto to continue a run"
        )
    return None


def _write_start(
    config: TrainConfig, inputs: Inputs, identity: dict[str, Any], deepspeed_values: dict[str, Any]
) -> None:
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--out {config.out}: {error.strerror}; choose another folder") from None
    software = {name: version(name) for name in ("boldstream", "torch", "deepspeed")}
    record = to_json(config) | identity["inputs"] | {"world_size": identity["world_size"], "software": software}
    write_atomic(config.out / CONFIG, json.dumps(record, indent=1) + "\n")
    write_atomic(config.out / DEEPSPEED_COPY, json.dumps(deepspeed_values, indent=1) + "\n")
    save_split(config.out / SPLIT, inputs.split)
    if inputs.target is not None:
        write_atomic(config.out / TARGET, json.dumps(inputs.target.to_json(), indent=1) + "\n")


def _identity(
    config: TrainConfig, inputs: Inputs, deepspeed_values: dict[str, Any], place: Place, loader: WindowLoader
) -> dict[str, Any]:
    """What a continuation must share with the run it continues."""
    flags = {name: value for name, value in to_json(config).items() if name not in FREE_ON_RESUME}
    return {
        **json.loads(json.dumps(flags)),
        "inputs": inputs.hashes | {"window_frames": loader.window_frames},
        "deepspeed": json.loads(json.dumps(deepspeed_values)),
        "world_size": place.world_size,
    }


def _with_steps(config: TrainConfig, loader: WindowLoader) -> TrainConfig:
    """Steps of the whole run from --epochs, and how often to validate."""
    steps = config.steps
    if steps is None:
        steps = max(1, round(float(config.epochs or 0) * loader.steps_per_epoch / config.accumulation))
    return replace(config, steps=steps, val_every=config.val_every or max(1, steps // DEFAULT_VALIDATIONS))


def _score_of(best: Best) -> dict[str, float]:
    return {"val_score": best.score} if best.file else {}


def _endless(loader: WindowLoader) -> Iterator[Batch]:
    while True:
        yield from loader


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy global generator is what libraries use
    torch.manual_seed(seed)
