"""What a frozen model makes of windows, with the frames of each run in their order or in a random one.

The encoder sees frames one by one, so their latents are the same in any order and are computed once; the transformer
then sees windows of the order asked for. A random order is one of the whole run, not of each window: slow changes
from window to window are as much dynamics as fast ones inside a window, and what is left is the set of a run's frames.

Shapes: T frame of a run, L frame of a window, N window, D latent, W transformer width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from shards.format import xxh3

if TYPE_CHECKING:
    import torch

    from eval.context import Context
    from shards.loader import WindowLoader
    from shards.reader import ShardSet
    from training.finetuning.features import Windows

Order = Literal["kept", "shuffled"]
Arrays = dict[str, npt.NDArray[Any]]
WINDOWS_AT_ONCE = 64


def run_tokens(
    model: Any, loader: WindowLoader, shard_set: ShardSet, orders: Sequence[Order], seed: int, device: torch.device
) -> Arrays:
    """Tokens of the windows that tile some runs.

    Parameters
    ----------
    model : training.networks.model.BoldModel
        Of phase 3, in evaluation mode, on `device`.
    loader : shards.loader.WindowLoader
        Tiles the runs.
    shard_set : shards.reader.ShardSet
        That of the loader.
    orders : sequence of {'kept', 'shuffled'}
        Orders of frames to see windows in.
    seed : int
        Of the random orders; each run has its own, whatever runs are beside it.
    device : torch.device
        Where to compute.

    Returns
    -------
    dict of str to numpy.ndarray
        'run', 'start' and 'num_frames', (N,) int64, by run and start; and for each order what the model's pool reads,
        float32: 'context_<order>' of shape (frames of all windows, D), or 'cls_<order>' of shape (N, W) where it reads
        the CLS output.
    """
    import torch

    with torch.no_grad():
        latents, places = _latents(model, loader, device)
        found: Arrays = {
            name: np.array([place[column] for place in places], dtype=np.int64)
            for column, name in enumerate(("run", "start", "num_frames"))
        }
        for order in orders:
            if order == "shuffled":
                moved = {run: x_TD[random_order(shard_set, run, seed)] for run, x_TD in latents.items()}
            else:
                moved = latents
            found |= {f"{name}_{order}": x for name, x in _in_context(model, moved, places, shard_set, device).items()}
    return found


def tokens_of(context: Context, model: Any, runs: Sequence[int], orders: Sequence[Order]) -> Arrays:
    """`run_tokens` of some runs of a context's shard set, in the windows of the training."""
    from training.predict import tiling_loader

    config, shard_set = context.config, context.shard_set
    with tiling_loader(model, shard_set, runs, context.window, config.batch_size, config.threads) as loader:
        return run_tokens(model, loader, shard_set, orders, config.seed, context.ranks.device)


def random_order(shard_set: ShardSet, run: int, seed: int) -> npt.NDArray[np.int64]:
    """A random order of the frames of a run, (T,), fixed by the seed and the run's name."""
    entry = shard_set.runs[run]
    rng = np.random.default_rng([seed, int(xxh3(entry.run_id.encode()), 16)])
    return rng.permutation(entry.num_frames)


def windows_of(
    part: Mapping[str, npt.NDArray[Any]], order: Order, device: torch.device, rows: npt.NDArray[np.int64] | None = None
) -> Windows:
    """The windows of `run_tokens` in one order, all or some rows, as `training.finetuning.features` reads them."""
    import torch

    from training.finetuning.features import Windows

    ends = np.cumsum(part["num_frames"])
    rows = np.arange(len(ends)) if rows is None else rows
    starts, stops = (ends - part["num_frames"])[rows].tolist(), ends[rows].tolist()
    if f"context_{order}" in part:
        context = torch.from_numpy(part[f"context_{order}"]).to(device)
        cls = [torch.empty(0, device=device)] * len(rows)
    else:
        context = torch.empty(int(part["num_frames"].sum()), 0, device=device)
        cls = list(torch.from_numpy(part[f"cls_{order}"][rows]).to(device))
    pieces = [context[start:stop] for start, stop in zip(starts, stops, strict=True)]
    return Windows(run=part["run"][rows].tolist(), context=pieces, cls=cls)


def _latents(
    model: Any, loader: WindowLoader, device: torch.device
) -> tuple[dict[int, torch.Tensor], list[tuple[int, int, int]]]:
    """Latents (T, D) of each run, and run, first frame and number of frames of each window."""
    import torch

    from training.networks.model import inputs_of

    pieces: dict[int, list[torch.Tensor]] = {}
    places = []
    for batch in loader:
        inputs = inputs_of(batch, device)
        residual_BLV = model.volume.residual(inputs["q"], inputs["gain"], inputs["shift"])
        latent_BLD = model.encode(residual_BLV, inputs["level"], inputs["spread"]).float()
        for k, run in enumerate(batch.run.tolist()):
            if run >= 0:
                places.append((run, int(batch.start[k]), int(batch.num_valid[k])))
                pieces.setdefault(run, []).append(latent_BLD[k, : int(batch.num_valid[k])])
    return {run: torch.cat(parts) for run, parts in pieces.items()}, places


def _in_context(
    model: Any,
    latents: dict[int, torch.Tensor],
    places: list[tuple[int, int, int]],
    shard_set: ShardSet,
    device: torch.device,
) -> Arrays:
    """What the pool reads of the windows at `places`, chunk by chunk."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from training.networks.pooling import valid_frames

    found = []
    for first in range(0, len(places), WINDOWS_AT_ONCE):
        chunk = places[first : first + WINDOWS_AT_ONCE]
        latent_NLD = pad_sequence([latents[run][start : start + length] for run, start, length in chunk], True)
        num_valid_N = torch.tensor([length for _, _, length in chunk], device=device)
        tr_s_N = torch.tensor([shard_set.runs[run].tr_s for run, _, _ in chunk], device=device)
        valid_NL = valid_frames(num_valid_N, latent_NLD.shape[1])
        context_NLD, cls_NW = model.read_tokens(latent_NLD, valid_NL, tr_s_N)
        found.append(cls_NW if model.pool.pool == "cls" else context_NLD[valid_NL])
    name = "cls" if model.pool.pool == "cls" else "context"
    return {name: torch.cat(found).float().cpu().numpy()}
