"""The stage `embeddings`, on a model with random weights."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_runs import WINDOW, asked, write_run

from eval.context import Context, open_context
from eval.embedding import stage as embedding_stage
from eval.embedding.basis import Basis
from eval.embedding.section import section
from eval.embedding.stage import embed
from eval.ranks import Ranks
from shards.errors import UsageError
from shards.splits import make_split
from training.predict import predict_windows


@pytest.fixture
def study(make_study):
    return make_study(num_subjects=24)


@pytest.fixture
def run(study, tmp_path: Path) -> Path:
    return write_run(tmp_path / "p3", study, phase=3)


def _embedded(study: Any, run: Path, out: Path, **more: Any):
    with open_context(asked(study, run, out, **more), Ranks()) as context:
        return embed(context, "npz")


def _basis(folder: Path) -> Basis:
    with np.load(folder / "basis.npz", allow_pickle=False) as found:
        return Basis.from_arrays(dict(found))


@pytest.mark.parametrize("pool", ["moments", "cls"])
def test_the_output_of_every_window_can_be_read_from_its_embedding(study, tmp_path: Path, pool: str) -> None:
    run = write_run(tmp_path / "p3", study, phase=3, pool=pool)
    with open_context(asked(study, run, tmp_path / "out"), Ranks()) as context:
        found = embed(context, "npz")
        shard_set = context.shard_set
        rows = predict_windows(context.model, shard_set, range(len(shard_set.runs)), int(WINDOW), 8, 1)
        wanted = {(shard_set.runs[row["run"]].run_id, row["start"]): row["output"][0] for row in rows}
    table, basis = found.windows, _basis(found.folder)
    output = table.vectors @ basis.readout + basis.offset
    told = dict(zip(zip(table.run_id, table.clip_start.tolist(), strict=True), output[:, 0], strict=True))
    assert told.keys() == wanted.keys()
    scale = np.std(list(wanted.values()))
    np.testing.assert_allclose([told[key] for key in wanted], list(wanted.values()), atol=1e-3 * scale)


def test_windows_tile_every_run_and_name_their_part(study, run: Path, tmp_path: Path) -> None:
    table = _embedded(study, run, tmp_path / "out").windows
    assert table.clip_start.tolist() == [0, 25, 50] * 24
    assert table.num_frames.tolist() == [25, 25, 10] * 24
    assert all(study.split.part_of[who] == part for who, part in zip(table.subject, table.part, strict=True))


def test_nothing_of_other_subjects_enters_the_directions(study, run: Path, tmp_path: Path) -> None:
    found = _embedded(study, run, tmp_path / "out")
    basis = _basis(found.folder)
    assert found.facts["num_subjects_fitted"] == len(study.split.train)
    assert found.facts["num_components"] == len(study.split.train) - 1
    np.testing.assert_allclose(found.of_part("train")[1].mean(axis=0)[: len(basis.share)], 0, atol=1e-5)
    assert found.facts["variance_kept"]["train"] == pytest.approx(1)
    assert 0 < found.facts["variance_kept"]["test"] < 1


def test_the_batch_size_changes_rounding_only(study, run: Path, tmp_path: Path) -> None:
    one, other = (_embedded(study, run, tmp_path / f"out{size}", batch_size=size) for size in (1, 7))
    np.testing.assert_allclose(one.vectors, other.vectors, atol=1e-4)


def test_what_is_done_is_read(study, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _embedded(study, run, tmp_path / "out")
    monkeypatch.setattr(embedding_stage, "window_features", None)
    again = _embedded(study, run, tmp_path / "out")
    np.testing.assert_array_equal(first.vectors, again.vectors)
    assert first.subjects == again.subjects
    assert first.facts == again.facts


def test_a_killed_call_goes_on_and_ends_in_the_same_bytes(
    study, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _embedded(study, run, tmp_path / "whole").folder
    real, calls = embedding_stage.embedded_runs, []

    def killed(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(embedding_stage, "embedded_runs", killed)
    with pytest.raises(KeyboardInterrupt):
        _embedded(study, run, tmp_path / "cut")
    assert not (tmp_path / "cut" / "embeddings" / "stage.json").exists()
    computed = len(calls)
    cut = _embedded(study, run, tmp_path / "cut").folder
    assert len(calls) - computed == 6  # of 8 parts, two were there
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in cut.iterdir())
    assert all((whole / name).read_bytes() == (cut / name).read_bytes() for name in names)


def test_too_few_training_subjects_are_refused(study, tmp_path: Path) -> None:
    split = make_split([f"{k:03d}" for k in range(4)], fractions=(0.5, 0.25, 0.25), seed=0)
    run = write_run(tmp_path / "p3", study, phase=3, split=split)
    with pytest.raises(UsageError, match="2 training subjects, at least 3"):
        _embedded(study, run, tmp_path / "out")


def test_the_section_has_its_figures_and_files(study, run: Path, tmp_path: Path) -> None:
    with open_context(asked(study, run, tmp_path / "out"), Ranks()) as context:
        found = section(context, embed(context, "npz"))
    svg = base64.b64decode(found.drawings[0].uri.split(",")[1])
    assert svg.startswith(b"<?xml")
    assert all((tmp_path / "out" / name).is_file() for name in found.files)
    assert [row[0] for row in found.tables[0].rows][:2] == ["group", "site"]


def test_a_site_that_outshines_the_target_is_named(study, run: Path, tmp_path: Path) -> None:
    with open_context(asked(study, run, tmp_path / "out"), Ranks()) as context:
        found = embed(context, "npz")
        site = _site_of(context)
        for row, who in enumerate(found.subjects):
            found.vectors[row, 0] += 1000 * (site[who] == "york")
        said = section(context, found).paragraphs[1]
    assert said.endswith("What explains most is site, not the target.")


def _site_of(context: Context) -> dict[str, str]:
    return dict(context.cohort.values["site"])


SCRIPT = """
import sys
from pathlib import Path
from eval.config import CommonConfig
from eval.context import open_context
from eval.embedding.stage import embed
from eval.ranks import join
from eval.reconstruction.stage import reconstruct

checkpoint, shards, out = sys.argv[1:]
with open_context(CommonConfig(checkpoint=Path(checkpoint), shards=shards, out=Path(out)), join()) as context:
    assert embed(context, "npz").subjects == context.ranks.gather(embed(context, "npz").subjects)[0]
    assert reconstruct(context, None) is not None
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_write_the_bytes_of_one(study, tmp_path: Path) -> None:
    run = write_run(tmp_path / "p3", study, phase=3, init=write_run(tmp_path / "p2", study, phase=2))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for world in (1, 2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
        places = [str(run), str(study.folder), str(tmp_path / f"out{world}")]
        subprocess.run(
            [*launch, str(script), *places], check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    one, two = (tmp_path / f"out{world}" for world in (1, 2))
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(names) >= 9
    assert names == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
