"""Which frames of a window phase 2 hides: a pure function of seed, step and window.

No random generator is involved, so the hidden frames do not depend on the number of ranks, on
restarts or on anything that ran before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.order import hashes


def hidden_frames(
    num_valid: NDArray[np.int64], key: NDArray[np.int64], *, num_frames: int, fraction: float, span: int
) -> NDArray[np.bool_]:
    """Draw stretches of hidden frames.

    Parameters
    ----------
    num_valid
        Real frames of each window; only these are hidden.
    key
        `[window, integers]` that name a window and a step; equal rows give equal draws.
    num_frames
        Frames of a window, padding included.
    fraction
        Share of the real frames to hide; at least one frame is, and at least one is not (if there are two).
    span
        Frames of a stretch; the last one may be cut to meet the share.

    Returns
    -------
    ndarray of bool, (window, frame)
    """
    hidden = np.zeros((len(num_valid), num_frames), bool)
    for row, valid in enumerate(num_valid.tolist()):
        if valid < 2:
            continue
        wanted = min(max(1, round(fraction * valid)), valid - 1)
        # the window is cut into stretches from a random phase; whole stretches are hidden in random order
        draws = hashes((valid + span - 2) // span + 2, *key[row].tolist())
        phase = int(draws[0] % np.uint64(span))
        rank = np.argsort(np.argsort(draws[1:], kind="stable"), kind="stable")
        order = np.argsort(rank[(np.arange(valid) + phase) // span], kind="stable")
        hidden[row, order[:wanted]] = True
    return hidden
