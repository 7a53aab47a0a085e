"""Neural baselines: small networks on region series or connectivity, several restarts averaged.

All are fitted on the training subjects and stop when the validation subjects' loss stops falling, as our model does.
Their size is fixed, not searched: nothing is chosen on anybody but the validation subjects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.baselines.network_inputs import ConnectivityInputs, Inputs, SeriesInputs
from eval.baselines.protocol import Baseline, Fitted, Problem
from eval.baselines.restarts import Restart, held_out_means, on_whom, plan_restarts
from eval.scoring.metrics import Floats

if TYPE_CHECKING:
    from torch import nn

    from eval.baselines.outcome import Outcome

Build = Callable[[Any, Sequence[str], int], "nn.Module"]


@dataclass(frozen=True, kw_only=True)
class NetworkBaseline:
    """A network as a baseline.

    Attributes
    ----------
    key, label, sees, size : str
        For people; `size` is what the network is made of.
    inputs : callable
        Problem and fitted subjects to `Inputs`.
    build : callable
        Inputs, subjects that are learnt from, number of outputs: a network with fresh weights.
    learning_rate : float
        Of AdamW.
    """

    key: str
    label: str
    sees: str
    size: str
    inputs: Callable[[Problem, Sequence[str]], Inputs]
    build: Build
    learning_rate: float = 1e-3

    def fit(self, problem: Problem) -> Fitted:
        """Fit every restart."""
        restarts = plan_restarts(problem)
        inputs = self.inputs(problem, problem.to_fit)
        members = [_member(self, problem, inputs, restart, number) for number, restart in enumerate(restarts)]
        stopped = [
            member.predict(inputs, restart.stops) if restart.stops else None
            for restart, member in zip(restarts, members, strict=True)
        ]
        steps = [member.steps for member in members]
        fits = f"mean of {len(members)} fits of {min(steps)} to {max(steps)} steps, {on_whom(restarts)}"
        return Fitted(
            note=f"{problem.regions.description}; {self.size}; {fits}",
            predict=lambda subjects: np.mean([member.predict(inputs, subjects) for member in members], axis=0),
            held_out=held_out_means(restarts, stopped),
        )


@dataclass(frozen=True, kw_only=True)
class _Member:
    """One fitted network."""

    network: nn.Module
    outcome: Outcome
    steps: int

    def predict(self, inputs: Inputs, subjects: Sequence[str]) -> Floats:
        """Outputs in the package's form, shape (N, K)."""
        from eval.baselines.network_training import outputs

        return self.outcome.decode(outputs(self.network, inputs, subjects))


def network_baselines(kind: str) -> tuple[Baseline, ...]:
    """The neural baselines, the same for every kind of target.

    Parameters
    ----------
    kind : {'binary', 'multiclass', 'regression'}
        Kind of target; the networks' outputs follow it when they are fitted.
    """
    return (
        NetworkBaseline(
            key="mlp",
            label="MLP on region series",
            sees="standardised region series, each frame by itself",
            size="a two-layer perceptron on frames, averaged over time",
            inputs=SeriesInputs,
            build=_frame_mlp,
        ),
        NetworkBaseline(
            key="lstm",
            label="LSTM on region series",
            sees="standardised region series in order, up to 64 frames at once",
            size="an LSTM, its states averaged over time",
            inputs=SeriesInputs,
            build=_series_lstm,
        ),
        NetworkBaseline(
            key="brainnetcnn",
            label="BrainNetCNN on FC",
            sees="static correlations of the regions, as a matrix",
            size="an edge-to-edge, an edge-to-node and a node-to-graph layer",
            inputs=ConnectivityInputs,
            build=_brainnetcnn,
        ),
    )


def _frame_mlp(inputs: SeriesInputs, learns: Sequence[str], num_outputs: int) -> nn.Module:
    from eval.baselines.series_networks import FrameMLP

    return FrameMLP(inputs.num_regions, num_outputs)


def _series_lstm(inputs: SeriesInputs, learns: Sequence[str], num_outputs: int) -> nn.Module:
    from eval.baselines.series_networks import SeriesLSTM

    return SeriesLSTM(inputs.num_regions, num_outputs)


def _brainnetcnn(inputs: ConnectivityInputs, learns: Sequence[str], num_outputs: int) -> nn.Module:
    from eval.baselines.brainnetcnn import BrainNetCNN

    mean, scale = inputs.spread(learns)
    return BrainNetCNN(inputs.num_regions, num_outputs, mean, scale)


def _member(baseline: NetworkBaseline, problem: Problem, inputs: Inputs, restart: Restart, number: int) -> _Member:
    """One fit, with random numbers of its own; the process's are left as they were."""
    import torch

    from eval.baselines.network_training import train
    from eval.baselines.outcome import Outcome

    target, device = problem.target, torch.device(problem.device)
    outcome = Outcome.of(problem.truth(restart.learns), target.kind, len(target.levels))
    seed = 1000 * problem.seed + number
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        network = baseline.build(inputs, restart.learns, outcome.num_outputs).to(device)
        trained = train(
            network, inputs, outcome, problem.y_fit, restart, learning_rate=baseline.learning_rate, seed=seed
        )
    return _Member(network=trained.network, outcome=outcome, steps=trained.steps)
