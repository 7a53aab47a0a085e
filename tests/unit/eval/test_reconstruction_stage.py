"""The stage `reconstruction`: whose decoder, what is measured, which files."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from random_runs import asked, write_run

from eval.context import open_context
from eval.ranks import Ranks
from eval.reconstruction import stage as reconstruction_stage
from eval.reconstruction.section import section, verdicts
from eval.reconstruction.stage import Reconstruction, reconstruct
from shards.errors import MismatchError, UsageError
from shards.reader import ShardSet
from shards.splits import Split, make_split


@pytest.fixture
def study(make_study: Any) -> Any:
    return make_study(num_subjects=12, runs=2)


@pytest.fixture
def pretrained(study: Any, tmp_path: Path) -> Path:
    return write_run(tmp_path / "p2", study, phase=2)


@pytest.fixture
def run(study: Any, tmp_path: Path, pretrained: Path) -> Path:
    return write_run(tmp_path / "p3", study, phase=3, init=pretrained)


def _reconstructed(
    study: Any, run: Path, out: Path, pretrained: Path | None = None, **more: Any
) -> Reconstruction | None:
    with open_context(asked(study, run, out, **more), Ranks()) as context:
        return reconstruct(context, pretrained)


def _row(found: Reconstruction, key: str) -> int:
    return [method.key for method in found.methods].index(key)


def test_the_mean_image_has_the_variance_of_the_residuals_as_its_error(study: Any, run: Path, tmp_path: Path) -> None:
    found = _reconstructed(study, run, tmp_path / "out")
    assert found is not None
    assert found.subjects == tuple(sorted(study.split.test))
    with ShardSet(study.folder) as shard_set:
        for who, measures in zip(found.subjects, found.measures, strict=True):
            runs = [k for k, entry in enumerate(shard_set.runs) if entry.subject == who]
            wanted = np.mean([np.square(shard_set.residual(k, 0, 60)).mean() for k in runs])
            assert measures[_row(found, "itself_mean"), 0] == pytest.approx(wanted, rel=1e-5)


def test_pca_of_training_frames_beats_the_mean_and_not_by_magic(study: Any, run: Path, tmp_path: Path) -> None:
    found = _reconstructed(study, run, tmp_path / "out")
    assert found is not None
    assert found.facts["pca_frames"] == min(2048, 2 * 60 * len(study.split.train))
    error = found.measures[:, _row(found, "itself_pca"), 0]
    assert (error < 0.9).all()
    assert (error > 0.2).all()  # half of each voxel is noise of its own


def test_results_do_not_depend_on_the_batch_size(study: Any, run: Path, tmp_path: Path) -> None:
    one, other = (_reconstructed(study, run, tmp_path / f"out{size}", batch_size=size) for size in (1, 5))
    assert one is not None
    assert other is not None
    np.testing.assert_allclose(one.measures, other.measures, atol=1e-4)
    assert one.example_id == other.example_id


def test_the_example_is_the_run_of_median_error(study: Any, run: Path, tmp_path: Path) -> None:
    found = _reconstructed(study, run, tmp_path / "out")
    assert found is not None
    with ShardSet(study.folder) as shard_set:
        entry = shard_set.runs[int(found.example["run"])]
        assert entry.run_id == found.example_id
        truth = shard_set.residual(int(found.example["run"]), 0, 60)
    np.testing.assert_allclose(found.example["carpet_true"], truth[:, found.example["voxels"]], atol=1e-5)
    np.testing.assert_allclose(found.example["volume_true"], truth[30], atol=1e-5)


def test_the_map_lies_on_the_grid_in_the_mask(study: Any, run: Path, tmp_path: Path) -> None:
    found = _reconstructed(study, run, tmp_path / "out")
    assert found is not None
    image = nibabel.load(found.folder / "temporal_correlation.nii.gz")
    with ShardSet(study.folder) as shard_set:
        np.testing.assert_array_equal(image.affine, np.asarray(shard_set.grid.affine))
        data = image.get_fdata()
        assert data.shape == tuple(shard_set.grid.shape)
        np.testing.assert_allclose(data[shard_set.mask], np.nan_to_num(found.map), atol=1e-6)
        assert not data[~shard_set.mask].any()


def test_what_is_done_is_read(study: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _reconstructed(study, run, tmp_path / "out")
    monkeypatch.setattr(reconstruction_stage, "measure_run", None)
    again = _reconstructed(study, run, tmp_path / "out")
    assert first is not None
    assert again is not None
    np.testing.assert_array_equal(first.measures, again.measures)
    assert first.methods == again.methods
    assert first.facts == again.facts


def test_a_killed_call_goes_on_and_ends_in_the_same_bytes(
    study: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _reconstructed(study, run, tmp_path / "whole")
    real, calls = reconstruction_stage.measure_run, []

    def killed(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(reconstruction_stage, "measure_run", killed)
    with pytest.raises(KeyboardInterrupt):
        _reconstructed(study, run, tmp_path / "cut")
    computed = len(calls)
    _reconstructed(study, run, tmp_path / "cut")
    assert len(calls) - computed == 2 * len(study.split.test) - 3
    whole, cut = tmp_path / "whole" / "reconstruction", tmp_path / "cut" / "reconstruction"
    assert all((cut / path.name).read_bytes() == path.read_bytes() for path in whole.iterdir())


def test_a_phase_1_run_has_no_time_to_predict(study: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "p3", study, phase=3, init=write_run(tmp_path / "p1", study, phase=1))
    found = _reconstructed(study, run, tmp_path / "out")
    assert found is not None
    assert {method.task for method in found.methods} == {"itself"}


def test_a_model_from_random_weights_has_no_decoder(
    study: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = write_run(tmp_path / "p3", study, phase=3)
    assert _reconstructed(study, run, tmp_path / "out") is None
    assert "random weights" in caplog.text


def test_a_run_folder_that_is_gone_can_be_named(study: Any, run: Path, pretrained: Path, tmp_path: Path) -> None:
    moved = pretrained.rename(tmp_path / "elsewhere")
    assert _reconstructed(study, run, tmp_path / "out") is None
    found = _reconstructed(study, run, tmp_path / "out", moved)
    assert found is not None
    assert found.facts["run"] == "elsewhere"


def test_a_run_without_decoder_is_refused(study: Any, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="phase-3 run, which has no decoder"):
        _reconstructed(study, run, tmp_path / "out", run)


def test_a_decoder_trained_on_the_scored_subjects_is_refused(study: Any, run: Path, tmp_path: Path) -> None:
    split: Split = make_split(sorted(study.truth), fractions=(0.8, 0.1, 0.1), seed=5)
    assert set(split.train) & set(study.split.test)
    other = write_run(tmp_path / "other", study, phase=2, split=split)
    with pytest.raises(MismatchError, match="of the test subjects were in its training"):
        _reconstructed(study, run, tmp_path / "out", other)


def test_a_decoder_of_another_mask_is_refused(
    study: Any, run: Path, tmp_path: Path, make_shard_set: Any, mask: Any
) -> None:
    larger = mask | (np.random.default_rng(0).random(mask.shape) > 0.5)
    make_shard_set(tmp_path / "large", frames=(30,), mask=larger)
    with ShardSet(tmp_path / "large") as shard_set:
        facts = type(study)(
            folder=tmp_path / "large", split=study.split, truth={}, set_hash=shard_set.manifest.set_hash
        )
    other = write_run(tmp_path / "other", facts, phase=2)
    with pytest.raises(MismatchError, match="its mask has"):
        _reconstructed(study, run, tmp_path / "out", other)


def test_the_section_tells_each_task_and_draws_each_panel(study: Any, run: Path, tmp_path: Path) -> None:
    with open_context(asked(study, run, tmp_path / "out"), Ranks()) as context:
        found = section(context, reconstruct(context, None))
    assert found is not None
    assert len(found.drawings) == 6
    assert all(base64.b64decode(each.uri.split(",")[1]).startswith(b"<?xml") for each in found.drawings)
    assert [row[0] for row in found.tables[0].rows].count("each frame from those before it") == 3
    assert all((tmp_path / "out" / name).is_file() for name in found.files)
    json.dumps([found.paragraphs, [table.rows for table in found.tables]])


def test_a_model_that_loses_to_a_rule_is_said_to_lose(study: Any, run: Path, tmp_path: Path) -> None:
    found = _reconstructed(study, run, tmp_path / "out")
    assert found is not None
    found.measures[:, _row(found, "itself_ours"), 0] = 1.5
    found.measures[:, _row(found, "itself_pca"), 0] = 0.75
    told = verdicts(found)[0]
    assert told.startswith("Every frame, nothing hidden: the model's squared error is 100.0 % higher than")
    assert f"lower in 0 of {len(found.subjects)} subjects" in told


def test_there_is_no_section_without_a_decoder(study: Any, run: Path, tmp_path: Path) -> None:
    with open_context(asked(study, run, tmp_path / "out"), Ranks()) as context:
        assert section(context, None) is None
