"""Fitting one small network: steps on random windows, until other subjects' loss stops falling."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from eval.baselines.network_inputs import Batch, Inputs
from eval.baselines.outcome import Outcome
from eval.baselines.restarts import Restart
from eval.scoring.metrics import Floats
from eval.subjects import evenly_spaced

WEIGHT_DECAY = 0.01
SUBJECTS_A_STEP = 32
MOST_STEPS = 2000
PATIENCE = 200
"""Steps without a better loss before a fit ends."""
CHECK_EVERY = 10
"""Steps between looks at the loss, at least; more where the looks would cost more than the steps."""
FIXED_STEPS = 100
"""Where nobody is held out to stop on."""
MOST_WATCHED = 200
"""Subjects whose loss is watched, evenly spread."""
WINDOWS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network as it was at its best step."""

    network: nn.Module
    steps: int


def train(
    network: nn.Module,
    inputs: Inputs,
    outcome: Outcome,
    y: Mapping[str, float],
    restart: Restart,
    *,
    learning_rate: float,
    seed: int,
) -> Trained:
    """Fit a network with AdamW.

    Parameters
    ----------
    network : torch.nn.Module
        Takes values and frame counts of a `Batch`; changed in place, on the device that it is on.
    inputs, outcome : Inputs, Outcome
        What it is given, and what its outputs mean.
    y : mapping of str to float
        The target.
    restart : Restart
        Subjects to learn from, each once in a pass, and subjects whose loss chooses the step.
    learning_rate : float
        Of AdamW.
    seed : int
        Of order and windows.
    """
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    draws = _draws(restart.learns, rng)

    def steps(count: int) -> None:
        network.train()
        for subjects in itertools.islice(draws, count):
            code = outcome.encode([y[subject] for subject in subjects])
            _step(network, optimiser, inputs.draw(subjects, rng), outcome, code)

    if not restart.stops:
        steps(FIXED_STEPS)
        return Trained(network=network.eval(), steps=FIXED_STEPS)
    watched = evenly_spaced(restart.stops, MOST_WATCHED)
    batches = list(inputs.whole(watched))
    code = outcome.encode([y[subject] for subject in watched])
    check_every = max(CHECK_EVERY, sum(len(batch.values) for batch in batches) // SUBJECTS_A_STEP)
    best, best_step, best_loss = copy.deepcopy(network.state_dict()), 0, np.inf
    for step in range(check_every, MOST_STEPS + 1, check_every):
        steps(check_every)
        loss = float(outcome.loss(_means(network, batches, len(watched)).cpu(), code))
        if loss < best_loss:
            best, best_step, best_loss = copy.deepcopy(network.state_dict()), step, loss
        elif step - best_step >= PATIENCE:
            break
    network.load_state_dict(best)
    return Trained(network=network.eval(), steps=best_step)


def outputs(network: nn.Module, inputs: Inputs, subjects: Sequence[str]) -> Floats:
    """The network's output for each subject, the mean over its windows by frames, shape (N, K)."""
    found: Floats = _means(network, inputs.whole(subjects), len(subjects)).double().cpu().numpy()
    return found


def _draws(learns: Sequence[str], rng: np.random.Generator) -> Iterator[list[str]]:
    """Batches of subjects without end, each subject once in a pass."""
    while True:
        order = rng.permutation(len(learns))
        for first in range(0, len(order), SUBJECTS_A_STEP):
            yield [learns[place] for place in order[first : first + SUBJECTS_A_STEP]]


def _step(network: nn.Module, optimiser: torch.optim.Optimizer, batch: Batch, outcome: Outcome, code_B: Tensor) -> None:
    loss = outcome.loss(_apply(network, batch, slice(None)), code_B.to(_device(network)))
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimiser.step()


@torch.no_grad()
def _means(network: nn.Module, batches: Iterable[Batch], num_subjects: int) -> Tensor:
    """Mean output of each subject over its windows, by frames, shape (N, K)."""
    network.eval()
    total_NK = frames_N1 = torch.zeros(0)
    for batch in batches:
        for first in range(0, len(batch.values), WINDOWS_AT_ONCE):
            some = slice(first, first + WINDOWS_AT_ONCE)
            output_BK = _apply(network, batch, some)
            if not total_NK.numel():
                total_NK = output_BK.new_zeros((num_subjects, output_BK.shape[1]))
                frames_N1 = output_BK.new_zeros((num_subjects, 1))
            owner_B = torch.from_numpy(batch.subject[some]).to(output_BK.device)
            frames_B1 = torch.from_numpy(batch.num_frames[some])[:, None].to(output_BK)
            total_NK.index_add_(0, owner_B, output_BK * frames_B1)
            frames_N1.index_add_(0, owner_B, frames_B1)
    return total_NK / frames_N1


def _apply(network: nn.Module, batch: Batch, some: slice) -> Tensor:
    device = _device(network)
    values, num_frames = torch.from_numpy(batch.values[some]), torch.from_numpy(batch.num_frames[some])
    output_BK: Tensor = network(values.to(device), num_frames.to(device))
    return output_BK


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
