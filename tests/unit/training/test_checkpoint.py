"""Checkpoints: what is loaded, what is refused and with which words, and which ones stay."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist

from shards.errors import CorruptShardError, MismatchError, OutputError
from training.checkpoints.checkpoint import Checkpoints
from training.checkpoints.identity import Identity, Layout, check_continues
from training.engine.environment import Place
from training.engine.randomness import random_state, restore_random_state, seed_all

PLACE = Place(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
IDENTITY = Identity(
    same={"seed": 3, "lr": 0.1, "deepspeed": {"bf16": {"enabled": False}}},
    layout=Layout(world_size=1, batch_size=12, accumulation=1, zero_stage=1),
    software={"boldstream": "1", "deepspeed": "2", "torch": "3"},
)


class Engine:
    """Writes and reads a checkpoint as DeepSpeed does: pickles below `folder/tag`."""

    def __init__(self) -> None:
        self.optimizer = SimpleNamespace(param_groups=[{"params": [1], "lr": 0.5}])
        self.loaded: str | None = None
        self.error: Exception | None = None

    def save_checkpoint(self, folder: str, *, tag: str, client_state: dict[str, Any], save_latest: bool) -> None:
        assert not save_latest
        (Path(folder) / tag / "deep").mkdir(parents=True)
        if self.error:
            raise self.error
        (Path(folder) / tag / "model.pt").write_bytes(pickle.dumps(client_state))
        (Path(folder) / tag / "deep" / "optimizer.pt").write_bytes(bytes(range(200)))

    def load_checkpoint(self, folder: str, *, tag: str) -> tuple[str, dict[str, Any]]:
        self.loaded = tag
        if self.error:
            raise self.error
        return tag, pickle.loads((Path(folder) / tag / "model.pt").read_bytes())


@pytest.fixture(autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone."""
    if dist.is_initialized():
        yield
        return
    where = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{where}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    """Of a run with checkpoints after steps 5 and 7."""
    made = Checkpoints(tmp_path, IDENTITY, 2, PLACE)
    for step in (5, 7):
        made.save(Engine(), step, {"at": step})
    return made


def resumed(checkpoints: Checkpoints, engine: Engine | None = None) -> tuple[int, dict[str, Any]]:
    found = checkpoints.latest()
    assert found is not None
    return checkpoints.resume(engine or Engine(), found)


def names(checkpoints: Checkpoints, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in checkpoints.folder.glob(pattern))


# What is loaded


def test_what_was_saved_comes_back_and_random_numbers_go_on(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, 2, PLACE)
    assert checkpoints.latest() is None
    checkpoints.save(Engine(), 4, {"at": "four"})
    expected = [torch.rand(3).tolist(), np.random.rand(3).tolist()]  # noqa: NPY002
    seed_all(99)
    assert resumed(checkpoints) == (4, {"at": "four"})
    assert [torch.rand(3).tolist(), np.random.rand(3).tolist()] == expected  # noqa: NPY002


def test_seeds_of_several_numbers_depend_on_each() -> None:
    drawn = set()
    for key in ((3, 10, 0), (3, 10, 1), (3, 11, 0), (4, 10, 0)):
        seed_all(*key)
        drawn.add(torch.rand(1).item())
        seed_all(*key)
        assert torch.rand(1).item() in drawn
    assert len(drawn) == 4
    state = random_state()
    value = torch.rand(1)
    restore_random_state(state)
    assert torch.equal(torch.rand(1), value)


# Bytes


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def add(path: Path) -> None:
    path.with_name("zero_pp_rank_9_optim_states.pt").write_bytes(b"x")


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink, add])
@pytest.mark.parametrize("name", ["model.pt", "deep/optimizer.pt", "identity.json", "files.json"])
def test_other_bytes_are_refused_before_anything_is_unpickled(
    checkpoints: Checkpoints, name: str, damage: Callable[[Path], None]
) -> None:
    damage(checkpoints.folder / "step00000007" / name)
    engine = Engine()
    with pytest.raises(CorruptShardError, match="step00000007") as caught:
        resumed(checkpoints, engine)
    assert engine.loaded is None
    assert f"write step00000005 into {checkpoints.folder / 'latest'}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_remedy_works(checkpoints: Checkpoints) -> None:
    flip(checkpoints.folder / "step00000007" / "model.pt")
    (checkpoints.folder / "latest").write_text("step00000005\n")
    assert resumed(checkpoints) == (5, {"at": 5})
    checkpoints.save(Engine(), 6, {"at": 6})
    assert names(checkpoints, "step*") == ["step00000005", "step00000006"]


def test_damage_of_the_only_checkpoint_says_to_start_anew(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, 1, PLACE)
    checkpoints.save(Engine(), 5, {})
    cut(checkpoints.folder / "step00000005" / "model.pt")
    with pytest.raises(CorruptShardError, match="choose another --out"):
        resumed(checkpoints)


@pytest.mark.parametrize("text", ["", "step00000009", "../checkpoints/step00000007", "partial-step00000007", "step7"])
def test_a_latest_that_names_no_checkpoint_is_refused(checkpoints: Checkpoints, text: str) -> None:
    (checkpoints.folder / "latest").write_text(text)
    with pytest.raises(CorruptShardError, match="latest: names"):
        checkpoints.latest()


# Which ones stay


@pytest.mark.parametrize("keep", [1, 2])
def test_what_was_never_named_does_not_push_out_what_is(tmp_path: Path, keep: int) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, keep, PLACE)
    for step in (5, 7):
        checkpoints.save(Engine(), step, {})
    for tag in ("step00000014", "partial-step00000008"):  # a crash came before `latest` named it, or before its end
        (checkpoints.folder / tag).mkdir()
    checkpoints.save(Engine(), 9, {})
    assert names(checkpoints, "step*") == ["step00000007", "step00000009"][-keep:]
    assert names(checkpoints, "partial-*") == []
    assert resumed(checkpoints)[0] == 9


def test_best_weights_stay_as_long_as_a_checkpoint_refers_to_them(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, 2, PLACE)
    best = {step: checkpoints.save_best(step, {"w": torch.full((3,), float(step))}) for step in (5, 6, 7)}
    checkpoints.save(Engine(), 5, {}, best[5])
    checkpoints.save(Engine(), 6, {}, best[5])
    assert names(checkpoints, "best-*") == [best[5]]
    best[7] = checkpoints.save_best(7, {"w": torch.full((3,), 7.0)})
    checkpoints.save(Engine(), 7, {}, best[7])
    assert names(checkpoints, "best-*") == [best[5], best[7]]
    checkpoints.save(Engine(), 8, {}, best[7])
    assert names(checkpoints, "best-*") == [best[7]]
    assert checkpoints.load_best(best[7])["w"].tolist() == [7, 7, 7]
    flip(checkpoints.folder / best[7])
    with pytest.raises(CorruptShardError, match=best[7]):
        resumed(checkpoints)


def test_no_room_is_one_line_and_leaves_the_checkpoint_before(checkpoints: Checkpoints) -> None:
    for error in (OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")):
        engine = Engine()
        engine.error = error
        with pytest.raises(OutputError, match="make room, the same command continues"):
            checkpoints.save(engine, 9, {})
        assert resumed(checkpoints) == (7, {"at": 7})


# Who may continue


def test_each_difference_is_named(checkpoints: Checkpoints) -> None:
    other = Identity(
        same={"seed": 4, "lr": 0.1, "deepspeed": {"bf16": {"enabled": True}}, "new": 1},
        layout=replace(IDENTITY.layout, accumulation=2, zero_stage=3),
        software=IDENTITY.software,
    )
    with pytest.raises(MismatchError) as caught:
        Checkpoints(checkpoints.folder.parent, other, 2, PLACE).latest()
    for told in (
        "deepspeed.bf16.enabled: found False, now True",
        "seed: found 3, now 4",
        "new: found None, now 1",
        "found 1 * 12 * 1 = 12, now 1 * 12 * 2 = 24",
        "ZeRO stage: found 1, now 3",
    ):
        assert told in str(caught.value)
    assert "lr:" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cut_as", "stages"), [((2, 6, 1), (1, 2)), ((3, 1, 4), (2, 1)), ((1, 4, 3), (3, 3)), ((12, 1, 1), (0, 0))]
)
def test_the_same_windows_may_be_cut_in_other_ways(cut_as: tuple[int, int, int], stages: tuple[int, int]) -> None:
    world_size, batch_size, accumulation = cut_as
    before = replace(IDENTITY.layout, zero_stage=stages[0])
    now = Layout(world_size=world_size, batch_size=batch_size, accumulation=accumulation, zero_stage=stages[1])
    check_continues(replace(IDENTITY, layout=before), replace(IDENTITY, layout=now), "run")
    with pytest.raises(MismatchError, match="windows of an optimizer step"):
        check_continues(IDENTITY, replace(IDENTITY, layout=replace(now, batch_size=batch_size + 1)), "run")


def test_another_version_is_told_and_named_where_it_cannot_be_read(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    later = Checkpoints(
        checkpoints.folder.parent, replace(IDENTITY, software=IDENTITY.software | {"torch": "4"}), 2, PLACE
    )
    with caplog.at_level(logging.WARNING, logger="training.checkpoints.checkpoint"):
        assert resumed(later)[0] == 7
    assert "saved by torch 3, now 4" in caplog.text
    engine = Engine()
    engine.error = AttributeError("no such class\nmore")
    with pytest.raises(MismatchError, match="saved by torch 3, now 4, which cannot be read") as caught:
        resumed(later, engine)
    assert "\n" not in str(caught.value)
    with pytest.raises(AttributeError):  # the same version: a bug of ours keeps its traceback
        resumed(checkpoints, engine)
