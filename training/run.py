"""The training loop of all phases; reads from top to bottom."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from shards.errors import BoldstreamError
from shards.loader import Batch, WindowLoader
from training.checkpoints.export import save_model
from training.config import EXIT_DIVERGED, EXIT_PREEMPTED, TrainConfig, resolve
from training.describe import describe
from training.engine.collective import first_rank_does, gather
from training.engine.deepspeed_config import read_deepspeed_config, with_its_batch
from training.engine.engine import gather_weights
from training.engine.environment import rank_of_launcher
from training.finetuning.task import Validate
from training.interruption import Interruption
from training.preflight import preflight
from training.pretraining.task import Losses
from training.reporting.progress import Progress
from training.reporting.steps import report_step, report_validation
from training.start import Run, start

logger = logging.getLogger(__name__)


class NonFiniteLossError(BoldstreamError):
    """The loss became infinite or not a number."""

    exit_code = EXIT_DIVERGED


@dataclass(kw_only=True)
class Best:
    """The best validation so far; its weights stay in `checkpoints/`.

    Phase 3 exports them, stops when `patience` validations in a row were no better, and so leaves the choice of
    the step to its validation subjects. Phases 1 and 2 export their last weights: their learning rate
    ends at 0, and what is reconstructed best need not be the best start of the next phase.
    """

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
    deepspeed_values = read_deepspeed_config(config.deepspeed_config)
    config = resolve(with_its_batch(config, deepspeed_values))
    if config.describe:
        if rank_of_launcher() == 0:
            print(describe(config))
        return 0
    if config.preflight:
        return preflight(config)
    with Interruption() as interruption:
        run = start(config, deepspeed_values, validate)
        return 0 if run is None else _loop(run, interruption)


def _loop(run: Run, interruption: Interruption) -> int:
    """From the run's step to its end, or to a signal; one turn is one optimizer step."""
    config, engine, loader, checkpoints = run.config, run.engine, run.loader, run.checkpoints
    step, num_steps, phase_3 = run.step, int(config.steps or 0), config.phase == 3
    best = Best() if run.best is None else Best(**run.best)
    saved_at = None if run.best is None else step
    if run.best is None and phase_3:
        best = _validate(run, best, step)

    progress = Progress(num_steps, step, loader)
    batches = _in_whole_steps(loader, config.accumulation)
    while step < num_steps and not (phase_3 and best.worse >= config.patience):
        engine.train()
        loss = 0.0
        for batch, losses in run.task.turns(engine, batches, step):
            mean, stop = _agree(run, losses, batch, interruption.asked, step)
            loss += mean / config.accumulation
            engine.backward(losses.per_window.mean())
            engine.step()
            progress.count(batch)
        step += 1
        if step % config.log_every == 0 or step == num_steps:
            report_step(run.journal, engine, progress, losses.terms, loss, step)
        if step % int(config.val_every or 1) == 0 or step == num_steps:
            best = _validate(run, best, step)
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
    first_rank_does(lambda: _finish(run, weights, best, step), run.place)
    logger.info("%s: done after %d steps", config.out, step)
    return 0


def _finish(run: Run, weights: dict[str, Tensor], best: Best, step: int) -> None:
    """Write the weights that travel: phase 3's best ones, else the last."""
    target = run.inputs.target
    facts = {"window": run.config.window, "target": target.to_json() if target else None, **run.inputs.hashes}
    chosen: dict[str, Any] = {"step": step}
    if run.config.phase == 3 and best.file:
        chosen = {"step": best.step, "val_score": best.score}
        weights = run.checkpoints.load_best(best.file)
    save_model(run.config.out, run.model, weights, chosen | facts)
    tail = {"best_step": best.step, "best_score": best.score} if best.file else {}
    run.journal.write("end", step, chosen_step=chosen["step"], **tail)


def _agree(run: Run, losses: Losses, batch: Batch, asked: bool, step: int) -> tuple[float, bool]:
    """Mean loss over all ranks, and whether any rank was asked to stop.

    Raises
    ------
    NonFiniteLossError
        On every rank, naming the runs whose loss is not finite on any.
    """
    loss_B = losses.per_window.detach().double()
    shared = torch.stack([loss_B.mean(), loss_B.new_tensor(float(asked))])
    dist.all_reduce(shared)
    mean, stop = (shared / run.place.world_size).tolist()
    if np.isfinite(mean):
        return mean, stop > 0
    broken = [number for number, loss in zip(batch.run.tolist(), loss_B.tolist(), strict=True) if not np.isfinite(loss)]
    numbers = sorted({number for part in gather(broken, run.place) for number in part})
    names = ", ".join(run.inputs.shard_set.runs[number].run_id for number in numbers[:10])
    raise NonFiniteLossError(
        f"step {step}: the loss is {mean} in windows of {names}; look at these runs, or lower --lr; "
        "the last checkpoint is kept"
    )


def _validate(run: Run, best: Best, step: int) -> Best:
    """Validate, and keep the weights if they are better than all before: phase 3's score, else the smallest error."""
    run.engine.eval()
    with torch.no_grad():
        found = run.task.validate(run.engine)
    if not found:
        return best
    report_validation(run.journal, run.engine, found, step)
    score = found["score"] if "score" in found else -found["mse"]
    if not score > best.score:
        return replace(best, worse=best.worse + 1)
    weights = gather_weights(run.engine)
    name = first_rank_does(lambda: run.checkpoints.save_best(step, weights), run.place)
    return Best(score=score, step=step, file=name)


def _in_whole_steps(loader: WindowLoader, accumulation: int) -> Iterator[Batch]:
    """Batches without end; windows of an epoch that do not fill an optimizer step are left out.

    So a step's windows depend on how many they are, not on how they are cut into ranks and batches.
    """
    whole = loader.steps_per_epoch // accumulation * accumulation * loader.global_batch
    while True:
        for batch in loader:
            if loader.position >= whole:
                loader.epoch, loader.position = loader.epoch + 1, 0
            yield batch
