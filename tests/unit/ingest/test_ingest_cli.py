"""`ingest-fmri` as a user meets it: what comes out, in which words, with which exit code."""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nifti_files import bold_image, save

from ingest.cli import main
from shards.reader import ShardSet


def run(src: Path, out: Path, *flags: str, workers: int = 0) -> int:
    return main(["--src", str(src), "--out", str(out), "--workers", str(workers), *flags])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the ledger and the report, which tell when and how fast things were done."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name not in ("ledger.jsonl", "report.html")
    }


def test_bids_to_shard_set(make_bids, tmp_path, capsys):
    src, out = make_bids(["01", "02", "03"]), tmp_path / "shards"
    assert run(src, out) == 0
    printed = capsys.readouterr()
    assert "layout bids: 3 files match" in printed.out and "the set has 3 runs in 1 shard" in printed.out
    assert printed.err == ""
    with ShardSet(out) as shards:
        assert [entry.run_id for entry in shards.runs] == [f"sub-0{k}_task-rest" for k in (1, 2, 3)]
        assert shards.num_voxels == 60 and "at least half of 3 masks" in shards.manifest.mask_source
        assert shards.phenotype("age") == {"01": "20", "02": "21", "03": "22"}
        entry = shards.runs[0]
        assert entry.tr_s == 1.5  # the sidecar goes before the header's 2.0
        assert entry.source == "sub-01/func/sub-01_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
        assert entry.mean_fd_mm == pytest.approx(0.19)
        assert 40 < entry.tsnr_median < 60
        source = nibabel.as_closest_canonical(nibabel.load(src / entry.source)).get_fdata()[shards.mask].T
        error = np.abs(shards.read_run(0) - source)
        assert error.max() == entry.error_max
        assert np.sqrt((error**2).mean()) == pytest.approx(entry.error_rms)
        assert (error <= shards.statistics(0).scale * 0.5001).all()


def test_one_and_two_workers_give_the_same_bytes(make_bids, tmp_path):
    src = make_bids(["01", "02", "03", "04", "05"])
    for workers in (0, 1, 2):
        assert run(src, tmp_path / f"w{workers}", "--shard-size", "10kB", workers=workers) == 0
    assert len(list((tmp_path / "w0").glob("*.tar"))) == 5
    assert contents(tmp_path / "w0") == contents(tmp_path / "w1") == contents(tmp_path / "w2")


def test_a_second_call_does_nothing_and_reads_no_image(make_bids, tmp_path, capsys):
    src, out = make_bids(["01", "02"]), tmp_path / "out"
    assert run(src, out) == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    for path in src.rglob("*bold.nii.gz"):
        status = path.stat()
        path.write_bytes(bytes(status.st_size))  # reading it would fail
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    capsys.readouterr()
    assert run(src, out) == 0
    assert "nothing to do: 2 runs in 1 shard" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_new_subjects_come_in_new_shards_and_old_shards_stay(make_bids, tmp_path):
    src, out = make_bids(["02", "03"]), tmp_path / "out"
    assert run(src, out) == 0
    old = (out / "prep-000000.tar").stat()
    mask = (out / "mask.nii.gz").read_bytes()
    make_bids(["01"])
    assert run(src, out) == 0
    new = (out / "prep-000000.tar").stat()
    assert (old.st_ino, old.st_mtime_ns) == (new.st_ino, new.st_mtime_ns)
    assert (out / "mask.nii.gz").read_bytes() == mask
    with ShardSet(out) as shards:
        assert [(entry.subject, entry.shard) for entry in shards.runs] == [
            ("01", "prep-000001.tar"),
            ("02", "prep-000000.tar"),
            ("03", "prep-000000.tar"),
        ]
        assert set(shards.phenotype("age")) == {"01", "02", "03"}


def test_a_changed_participants_table_is_taken_over(make_bids, tmp_path, capsys):
    src, out = make_bids(["01", "02"]), tmp_path / "out"
    assert run(src, out) == 0
    (src / "participants.tsv").write_text("participant_id\tsite\nsub-01\tA\nsub-02\tB\n")
    assert run(src, out) == 0
    assert "updated participants.tsv, manifest.json" in capsys.readouterr().out
    with ShardSet(out) as shards:
        assert shards.phenotype("site") == {"01": "A", "02": "B"}


def test_other_settings_are_refused_field_by_field_on_one_line(make_bids, tmp_path, capsys):
    src, out = make_bids(["01"]), tmp_path / "out"
    assert run(src, out) == 0
    before = contents(out)
    assert run(src, out, "--dtype", "int16", "--min-frames", "5") == 6
    (line,) = capsys.readouterr().err.splitlines()
    assert "--dtype found int8, now int16; --min-frames found 10, now 5" in line and "--overwrite" in line
    assert contents(out) == before


def test_overwrite_removes_what_is_ours_and_nothing_else(make_bids, tmp_path, capsys):
    src, out = make_bids(["01", "02"]), tmp_path / "out"
    assert run(src, out, "--shard-size", "10kB") == 0
    (out / "notes.txt").write_text("mine")
    (out / "prep-000009.tar").write_text("mine too")
    assert run(src, out, "--dtype", "float32", "--overwrite") == 0
    assert "removed 8 files" in capsys.readouterr().out
    assert sorted(path.name for path in out.glob("*.tar")) == ["prep-000000.tar", "prep-000009.tar"]
    assert (out / "notes.txt").read_text() == "mine"
    with ShardSet(out) as shards:
        assert shards.manifest.dtype == "float32"


@pytest.mark.parametrize("name", ["manifest.json", "runs.tsv", "ledger.jsonl", "prep-000000.tar"])
@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_foreign_files_of_our_names_are_never_overwritten(make_bids, tmp_path, capsys, name, flags):
    src, out = make_bids(["01"]), tmp_path / "out"
    out.mkdir()
    (out / name).write_text("of another program")
    assert run(src, out, *flags) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    assert [path.name for path in out.iterdir()] == [name]
    assert (out / name).read_text() == "of another program"


def test_python_files_in_the_output_folder_are_left_alone_and_mentioned(make_bids, tmp_path, capsys):
    src, out = make_bids(["01"]), tmp_path / "shards"
    out.mkdir()
    (out / "reader.py").write_text("x = 1\n")
    assert run(src, out) == 0
    assert "Python files (reader.py" in capsys.readouterr().out
    assert (out / "reader.py").read_text() == "x = 1\n"


def bad_inputs(folder: Path) -> dict[str, tuple[str, str]]:
    """Write one file of each kind; returns file name to (stage, words)."""
    good = save(bold_image(9), folder / "cut.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(good[: len(good) // 2])
    (folder / "flipped.nii.gz").write_bytes(good[:-6] + bytes([good[-6] ^ 1]) + good[-5:])
    (folder / "text.nii.gz").write_text("this is no image\n")
    save(nibabel.Nifti1Image(np.zeros((5, 6, 4), np.int16), np.eye(4)), folder / "flat.nii.gz")
    save(bold_image(9, num_frames=5), folder / "short.nii.gz")
    save(bold_image(9, tr_s=0.0), folder / "notr.nii.gz")
    values = bold_image(9).get_fdata()
    values[2, 2, 2, 3] = np.nan
    hole = nibabel.Nifti1Image(values.astype(np.float32), bold_image(9).affine, bold_image(9).header)
    save(hole, folder / "hole.nii.gz")
    values[:] = 7
    still = nibabel.Nifti1Image(values.astype(np.float32), bold_image(9).affine, bold_image(9).header)
    save(still, folder / "still.nii")
    moved = bold_image(9)
    moved.set_sform(np.diag([2, 2, 2, 1]))
    save(moved, folder / "moved.nii.gz")
    (folder / "link.nii.gz").symlink_to(folder / "not-there")
    return {
        "cut.nii.gz": ("data", "cut short"),
        "flipped.nii.gz": ("data", "damaged"),
        "text.nii.gz": ("header", "not a NIfTI file"),
        "flat.nii.gz": ("header", "3D (5 x 6 x 4), wanted 4D"),
        "short.nii.gz": ("frames", "5 frames, wanted 10"),
        "notr.nii.gz": ("tr", "repetition time is none"),
        "hole.nii.gz": ("values", "1 of 60 voxels"),
        "still.nii": ("constant", "no voxel in the mask varies"),
        "moved.nii.gz": ("grid", "the set's is 5 x 6 x 4"),
        "link.nii.gz": ("open", "broken link"),
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_each_bad_input_is_named_once_and_the_others_are_ingested(tmp_path, capsys, workers):
    src, out = tmp_path / "data", tmp_path / "out"
    for k in range(3):
        save(bold_image(k), src / f"good{k}.nii.gz")
    expected = bad_inputs(src)
    assert run(src, out, workers=workers) == 4
    lines = capsys.readouterr().err.splitlines()
    header, *rows = [line.split("\t") for line in (out / "failures.tsv").read_text().splitlines()]
    assert header == ["run_id", "source", "stage", "class", "reason", "remedy"]
    found = {row[1]: row for row in rows}
    assert found.keys() == expected.keys()
    for name, (stage, words) in expected.items():
        assert found[name][2] == stage and words in found[name][4] and found[name][5], found[name]
        assert sum(f" {name}: " in line for line in lines) == 1
    assert len([line for line in lines if not line.startswith("dashboard ")]) == len(expected)
    with ShardSet(out) as shards:
        assert [entry.subject for entry in shards.runs] == ["good0", "good1", "good2"]
    before = contents(out)
    assert run(src, out) == 4
    printed = capsys.readouterr()
    assert "nothing to do: 3 runs in 1 shard, 10 failed (see" in printed.out and printed.err == ""
    assert contents(out) == before


def test_a_repaired_run_is_appended_and_its_failure_forgotten(tmp_path):
    src, out = tmp_path / "data", tmp_path / "out"
    save(bold_image(0), src / "a.nii.gz")
    good = save(bold_image(1), src / "b.nii.gz").read_bytes()
    (src / "b.nii.gz").write_bytes(good[:-30])
    assert run(src, out) == 4
    first = (out / "data-000000.tar").read_bytes()
    (src / "b.nii.gz").write_bytes(good)
    assert run(src, out) == 0
    assert not (out / "failures.tsv").exists()
    assert (out / "data-000000.tar").read_bytes() == first
    with ShardSet(out) as shards:
        assert [(entry.subject, entry.shard) for entry in shards.runs] == [
            ("a", "data-000000.tar"),
            ("b", "data-000001.tar"),
        ]


def test_no_set_is_published_when_every_run_fails(tmp_path, capsys):
    src, out = tmp_path / "data", tmp_path / "out"
    good = save(bold_image(0), src / "a.nii.gz").read_bytes()
    (src / "a.nii.gz").write_bytes(good[:-30])
    (src / "b.nii.gz").write_text("x")
    assert run(src, out) == 4
    assert "no run could be ingested" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["failures.tsv", "ledger.jsonl", "report.html"]
    (src / "a.nii.gz").write_bytes(good)
    assert run(src, out, "--dtype", "int16") == 4  # nothing was ingested: other settings are welcome
    assert ShardSet(out).manifest.dtype == "int16"


def test_confounds_of_another_length_fail_the_run(make_bids, tmp_path):
    src, out = make_bids(["01", "02"]), tmp_path / "out"
    table = src / "sub-01/func/sub-01_task-rest_desc-confounds_timeseries.tsv"
    table.write_text(table.read_text() + "0.1\t0.2\n")
    assert run(src, out) == 4
    row = (out / "failures.tsv").read_text().splitlines()[1].split("\t")
    assert row[2:5] == [
        "confounds",
        "other-length",
        "sub-01_task-rest_desc-confounds_timeseries.tsv has 21 rows, the run 20 frames",
    ]


def test_a_lost_shard_is_built_again_with_the_same_bytes(make_bids, tmp_path, capsys):
    src, out = make_bids(["01", "02"]), tmp_path / "out"
    assert run(src, out) == 0
    before = contents(out)
    (out / "prep-000000.tar").unlink()
    (out / "mask.nii.gz").unlink()
    assert run(src, out) == 0
    assert "prep-000000.tar is missing" in capsys.readouterr().out
    assert contents(out) == before


def test_given_mask(make_bids, tmp_path, capsys):
    src = make_bids(["01"])
    voxels = np.zeros((5, 6, 4), np.uint8)
    voxels[2:4, 2, 2] = 1
    path = save(nibabel.Nifti1Image(voxels, bold_image(0).affine), tmp_path / "m.nii.gz")
    assert run(src, tmp_path / "out", "--mask", str(path)) == 0
    assert ShardSet(tmp_path / "out").num_voxels == 2
    save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    assert run(src, tmp_path / "out2", "--mask", str(path)) == 2
    assert "the runs' is 5 x 6 x 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--shard-size", "big"), 2, "--shard-size 'big'"),
        (("--tr", "-1"), 2, "--tr -1"),
        (("--workers", "-2"), 2, "--workers -2"),
        (("--mask", "no.nii"), 2, "--mask no.nii"),
        (("--name", "a/b"), 2, "--name 'a/b'"),
        (("--task", "nback"), 3, "tasks: rest"),
        (("--space", "T1w"), 3, "MNI152NLin2009cAsym (1)"),
    ],
)
def test_bad_flags_end_in_one_line_and_write_nothing(make_bids, tmp_path, capsys, flags, code, words):
    out = tmp_path / "out"
    assert run(make_bids(["01"]), out, *flags) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert not out.exists()


def test_missing_and_empty_source(tmp_path, capsys):
    assert run(tmp_path / "none", tmp_path / "out") == 2
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", tmp_path / "out") == 3
    one, two = capsys.readouterr().err.splitlines()
    assert "no such file or folder" in one and "holds no files; tried" in two
    assert not (tmp_path / "out").exists()


def test_the_output_folder_cannot_be_the_source_or_a_file(make_bids, tmp_path, capsys):
    src = make_bids(["01"])
    assert run(src, src) == 2
    (tmp_path / "file").write_text("")
    assert run(src, tmp_path / "file") == 5
    one, two = capsys.readouterr().err.splitlines()
    assert "is the source itself" in one and "cannot be made" in two


def test_a_full_disk_ends_in_5_and_is_continued_when_there_is_room(make_bids, tmp_path):
    src, out = make_bids(["01", "02"]), tmp_path / "out"
    code = (
        "import resource, sys; from ingest.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
        f"sys.exit(main(['--src', {str(src)!r}, '--out', {str(out)!r}, '--workers', '0']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    (line,) = done.stderr.splitlines()
    assert "prep-000000.tar" in line and "make room" in line
    assert sorted(path.name for path in out.iterdir()) == ["ledger.jsonl", "mask.nii.gz"]
    assert run(src, out) == 0
    assert len(ShardSet(out).runs) == 2


def test_a_source_that_changed_after_it_was_ingested_is_said(make_bids, tmp_path, capsys):
    src, out = make_bids(["01", "02"]), tmp_path / "out"
    assert run(src, out) == 0
    before = contents(out)
    make_bids(["02"], num_frames=25)
    assert run(src, out) == 0
    assert "1 source written to since ingested (sub-02/func/" in capsys.readouterr().out
    assert contents(out) == before


def test_dry_run_writes_nothing(make_bids, tmp_path, capsys):
    src, out = make_bids(["01", "02"]), tmp_path / "out"
    (src / "sub-02/func/sub-02_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz").write_text("x")
    assert run(src, out, "--dry-run") == 4
    printed = capsys.readouterr()
    assert "dry run: 2 runs found, 0 already there, 1 to ingest, 1 would fail" in printed.out
    assert "not a NIfTI file" in printed.err
    assert not out.exists()


def test_json_summary(make_bids, tmp_path, capsys):
    assert run(make_bids(["01"]), tmp_path / "out", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["num_added"], summary["num_runs"], summary["exit_code"]) == (1, 1, 0)


def test_stop_on_failure_begins_no_further_shard(tmp_path, capsys):
    src, out = tmp_path / "data", tmp_path / "out"
    for name in "abc":
        save(bold_image(ord(name)), src / f"{name}.nii.gz")
    data = (src / "b.nii.gz").read_bytes()
    (src / "b.nii.gz").write_bytes(data[:-20])
    mask = np.ones((5, 6, 4), np.uint8)
    path = save(nibabel.Nifti1Image(mask, bold_image(0).affine), tmp_path / "m.nii.gz")
    flags = ("--mask", str(path), "--shard-size", "10kB")
    assert run(src, out, *flags, "--on-failure", "stop") == 4
    assert [path.name for path in out.glob("*.tar")] == ["data-000000.tar"]
    assert run(src, out, *flags) == 4
    assert sorted(path.name for path in out.glob("*.tar")) == ["data-000000.tar", "data-000002.tar"]


def test_same_content_twice_is_said(tmp_path, capsys):
    src = tmp_path / "data"
    save(bold_image(1), src / "a.nii.gz")
    shutil.copy(src / "a.nii.gz", src / "b.nii.gz")
    assert run(src, tmp_path / "out") == 0
    assert "same content twice: b.nii.gz and a.nii.gz" in capsys.readouterr().out


def test_plain_and_gzipped_sources_give_the_same_shard_values(tmp_path):
    save(bold_image(4), tmp_path / "one/a.nii.gz")
    (tmp_path / "two").mkdir()
    (tmp_path / "two/a.nii").write_bytes(gzip.decompress((tmp_path / "one/a.nii.gz").read_bytes()))
    for name in ("one", "two"):
        assert run(tmp_path / name, tmp_path / f"out-{name}", "--name", "x") == 0
    one, two = (ShardSet(tmp_path / f"out-{name}").read_run(0) for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)


def test_help_is_quick_and_imports_neither_torch_nor_dask():
    code = (
        "import sys, ingest.cli\n"
        "try: ingest.cli.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'torch', 'dask', 'distributed', 'nilearn', 'sklearn', 'numba', 'nibabel'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)  # others may be busy too
        assert done.returncode == 0, done.stderr
    assert "--participant-label" in done.stdout and "exit codes" in done.stdout
    assert min(seconds) < 0.5
