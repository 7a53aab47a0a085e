"""The promise of the order, through the loader, on sets without bytes: ranks, threads, lengths, TRs, interruptions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import order
from shards.affine import even_gain
from shards.errors import UsageError
from shards.loader import WindowLoader

Window = tuple[int, int, int]
WORLDS = [1, 2, 3, 4, 8, 64]


class Bytes:
    """What the loader asks of a set; a window's values say which it is."""

    def __init__(self, frames: list[int], tr_s: list[float]) -> None:
        self.location, self.num_voxels, self.dtype = "nowhere", 3, np.dtype("int16")
        self.manifest = SimpleNamespace(dtype="int16", set_hash="0" * 32)
        self.mask = np.ones((1, 1, 3), bool)
        self.runs = [
            SimpleNamespace(num_frames=n, tr_s=t, run_id=f"sub-{k}", shard="x.tar")
            for k, (n, t) in enumerate(zip(frames, tr_s, strict=True))
        ]

    def read_window(self, run: int, start: int, num_frames: int, out: np.ndarray) -> None:
        assert start >= 0 and start + num_frames <= self.runs[run].num_frames and len(out) == num_frames
        out[:, 0], out[:, 1], out[:, 2] = run, np.arange(start, start + num_frames), num_frames

    def gain(self, run: int) -> Any:
        return even_gain("int16")

    def stored_bytes(self, run: int, num_frames: int) -> int:
        return num_frames


def windows_of(batch: Any) -> list[Window]:
    rows = list(zip(batch.run.tolist(), batch.start.tolist(), batch.num_valid.tolist(), strict=True))
    for row, (run, start, frames) in enumerate(rows):
        if run >= 0:
            q = batch.q[row, :frames].numpy()
            assert (q[:, 0] == run).all() and q[0, 1] == start and (q[:, 2] == frames).all()
    return rows


def stream(loaders: list[WindowLoader], unit: int, epochs: int, until: int | None = None) -> list[list[Window]]:
    """Global batches of all ranks, in order, from where the loaders are until epoch `epochs`, or so many steps."""
    steps: list[list[Window]] = []
    world = len(loaders)
    while loaders[0].epoch < epochs:
        for parts in zip(*loaders, strict=True):
            rows = [windows_of(part) for part in parts]
            count = len(rows[0]) * world
            steps.append([rows[k // unit % world][k // unit // world * unit + k % unit] for k in range(count)])
            if len(steps) == until:
                return steps
    return steps


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    number = draw(st.integers(1, 6))
    pairs = draw(st.booleans())
    case = {
        "frames": draw(st.lists(st.integers(8, 400), min_size=number, max_size=number)),
        "tr_s": draw(st.lists(st.sampled_from([0.72, 0.8, 2.0, 3.0]), min_size=number, max_size=number)),
        "window": draw(st.sampled_from([1, 5, "20", "7.2s", "16s"])),
        "seed": draw(st.integers(0, 2**40)),
        "pairs": pairs,
        "weights": draw(st.none() | st.lists(st.sampled_from([0.5, 1.0, 7.0]), min_size=number, max_size=number)),
    }
    case["world"] = draw(st.sampled_from(WORLDS))
    case["other"] = draw(st.sampled_from([w for w in WORLDS if case["world"] % w == 0]))
    case["threads"] = draw(st.sampled_from([1, 2, 4]))
    case["mode"] = draw(st.sampled_from(["train", "tile"]))
    return case


def loaders_of(case: dict[str, Any], world: int, threads: int) -> list[WindowLoader]:
    opened: Any = Bytes(case["frames"], case["tr_s"])
    unit = 2 if case["pairs"] else 1
    options = {name: case[name] for name in ("window", "seed", "pairs", "weights", "mode")}
    share = case["world"] // world * unit
    return [
        WindowLoader(opened, batch_size=share, rank=rank, world_size=world, threads=threads, **options)
        for rank in range(world)
    ]


@given(case=cases(), where=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_the_order_does_not_depend_on_ranks_threads_or_interruptions(case: dict[str, Any], where: int) -> None:
    try:
        whole = loaders_of(case, case["world"], 1)
    except UsageError:
        return  # less than one global batch
    unit = 2 if case["pairs"] and case["mode"] == "train" else 1
    expected = stream(whole, unit, epochs=2)
    stop = where % len(expected)
    first = loaders_of(case, case["other"], case["threads"])
    seen = stream(first, unit, epochs=2, until=stop) if stop else []
    second = loaders_of(case, case["world"], case["threads"])
    for loader in second:
        loader.load_state_dict(first[0].state_dict())
    assert seen + stream(second, unit, epochs=2) == expected
    for loader in (*whole, *first, *second):
        loader.close()


@pytest.mark.parametrize("world", WORLDS)
def test_an_epoch_is_every_window_of_the_order_but_the_incomplete_last_batch(world: int) -> None:
    frames, trs = [300, 77, 1200, 64, 500], [0.72, 2.0, 0.8, 3.0, 2.0]
    case = {"frames": frames, "tr_s": trs, "window": "16s", "seed": 9, "pairs": False, "weights": None, "mode": "train"}
    found = [window for step in stream(loaders_of(case | {"world": world}, world, 2), 1, epochs=1) for window in step]
    expected = order.training_windows(frames, order.parse_window("16s", trs), 9, 0)
    rows = list(zip(expected.run.tolist(), expected.start.tolist(), expected.num_frames.tolist(), strict=True))
    assert found == rows[: len(rows) // world * world]
