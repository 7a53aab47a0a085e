"""Whatever lies in the source folder, `ingest-fmri` ends as documented, in bounded memory and time.

The corpus stands in `hostile_*.py`; every case goes through the command together with two good runs.
"""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hostile_folders
import hostile_geometry
import hostile_gzip
import hostile_headers
import hostile_numbers
import hostile_tables
import nibabel
import numpy as np
import pytest
from hostile_case import GOOD, Case
from nifti_files import AFFINE, SHAPE, bold_image, save

from ingest.cli import main
from shards.reader import ShardSet

THEMES = {
    "headers": hostile_headers,
    "gzip": hostile_gzip,
    "geometry": hostile_geometry,
    "numbers": hostile_numbers,
    "tables": hostile_tables,
    "folders": hostile_folders,
}


def named(*themes: str, failing_at: Sequence[str] = ()) -> list[Any]:
    """The cases of some themes, or those that fail at some stages, with ids to choose them by."""
    cases = [(theme, case) for theme in themes for case in THEMES[theme].CASES]
    kept = [
        (theme, case)
        for theme, case in cases
        if not failing_at or any(f[0] in failing_at for f in case.failed.values())
    ]
    return [pytest.param(case, id=f"{theme}: {case.name}") for theme, case in kept]


MEMORY_BYTES = 512 * 2**20
"""Of address space that a call may take beyond what the process has; the bombs declare at least four times that."""
RESIDENT_BYTES = 96 * 2**20
"""That a call may touch: the sources have less than 4 MB, one of the bombs inflates to 1 GB."""
TIME_S = 10.0
STUCK_S = TIME_S


@pytest.fixture(autouse=True)
def without_report(monkeypatch) -> None:
    """It takes a second; `test_all_at_once_with_their_report` makes it."""
    monkeypatch.setattr("ingest.run.bring_report_up_to_date", lambda *_: [])


@pytest.fixture(scope="module")
def mask_file(tmp_path_factory) -> Path:
    """The block of the good runs that varies."""
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[1:, 1:, 1:] = 1
    return save(nibabel.Nifti1Image(voxels, AFFINE), tmp_path_factory.mktemp("mask") / "mask.nii.gz")


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory, mask_file) -> None:
    """Import and compile before anything is measured."""
    folder = tmp_path_factory.mktemp("warm")
    write_good(folder / "data")
    for k, flags in enumerate(((), ("--mask", str(mask_file)))):
        assert call(folder / "data", folder / f"out{k}", *flags) == 0


def write_good(folder: Path) -> None:
    for name, seed in GOOD.items():
        save(bold_image(seed), folder / name)


def call(src: Path, out: Path, *flags: str) -> int:
    return main(["--src", str(src), "--out", str(out), "--workers", "0", *flags])


@pytest.mark.parametrize("case", named(*THEMES))
def test_hostile_input_ends_as_documented(case: Case, tmp_path, capsys, mask_file):
    src, out = tmp_path / "data", tmp_path / "out"
    write_good(src)
    case.write(src)
    flags = [flag.replace("MASK", str(mask_file)).replace("SRC", str(src)) for flag in case.flags]
    with bounded(tmp_path), silent():
        code = call(src / case.src, out, *flags)
    printed = capsys.readouterr()
    assert code == case.exit_code, printed
    assert case.says in (printed.out if case.good else printed.err)
    if not case.good:
        (line,) = printed.err.splitlines()
        assert line.startswith("error: ") and not (out.exists() and list(out.iterdir()))
        return
    chk_failures(case, out, printed.err)
    chk_set(case, src, out)
    before = contents(out)
    assert call(src / case.src, out, *flags) == case.exit_code
    assert capsys.readouterr().err == "" and contents(out) == before


@pytest.mark.parametrize("case", named("gzip", "numbers", failing_at=("data", "values", "constant")))
def test_without_a_mask_the_good_runs_are_ingested_all_the_same(case: Case, tmp_path, capsys):
    """The mask is computed from the runs, the bad one among them, before any is encoded."""
    src, out = tmp_path / "data", tmp_path / "out"
    write_good(src)
    case.write(src)
    with bounded(tmp_path), silent():
        assert call(src, out) == 4
    found = {source: (row["stage"], row["class"]) for source, row in read_failures(out).items()}
    assert len(capsys.readouterr().err.splitlines()) == len(found)
    if case in hostile_gzip.CASES:
        assert found == {source: expected[:2] for source, expected in case.failed.items()}
    with ShardSet(out) as shards:
        assert set(GOOD) <= {entry.source for entry in shards.runs}


@pytest.mark.parametrize("flags", [("--dtype", "float16"), ("--dtype", "float32"), ("--detrend",)], ids=" ".join)
@pytest.mark.parametrize("case", named("numbers", failing_at=("values",)))
def test_other_flags_take_hostile_numbers_or_refuse_them_by_name(case: Case, flags, tmp_path, mask_file):
    src, out = tmp_path / "data", tmp_path / "out"
    write_good(src)
    case.write(src)
    with bounded(tmp_path), silent():
        assert call(src, out, "--mask", str(mask_file), *flags) in (0, 4)
    assert {row["stage"] for row in read_failures(out).values()} <= {"values", "constant", "clean"}
    with ShardSet(out) as shards:
        assert set(GOOD) <= {entry.source for entry in shards.runs}
        assert all(np.isfinite(shards.read_run(number)).all() for number in range(len(shards.runs)))


def test_all_at_once_with_their_report(tmp_path, mask_file):
    """One call of the installed command over most of the corpus says nothing but one line a failure, or fewer."""
    src, out = tmp_path / "data", tmp_path / "out"
    write_good(src)
    failed, taken = {}, set(GOOD)
    for number, case in enumerate(beside_each_other()):
        (src / f"c{number:03}").mkdir()
        case.write(src / f"c{number:03}")
        failed |= {f"c{number:03}/{source}": expected[:2] for source, expected in case.failed.items()}
        taken |= {f"c{number:03}/{source}" for source in case.taken}
    code = "import sys; from ingest.cli import main; sys.exit(main())"
    flags = ["--src", src, "--out", out, "--mask", mask_file, "--workers", "0"]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 4, done.stderr[-3000:]
    assert [line for line in done.stderr.splitlines() if not line.startswith(("failed: ", "... and "))] == []
    assert {source: (row["stage"], row["class"]) for source, row in read_failures(out).items()} == failed
    assert {entry.source for entry in ShardSet(out).runs} == taken
    page = (out / "report.html").read_text()
    assert "alert(1)" in page and "<script>alert(1)" not in page


def beside_each_other() -> list[Case]:
    """The cases that need no flags of their own and nothing of the folder that they are written into."""
    parts = (hostile_headers.CASES, hostile_gzip.CASES, hostile_geometry.CASES, hostile_numbers.CASES)
    more = (hostile_tables.CONFOUNDS, hostile_tables.SIDECARS, hostile_folders.NAMED)
    return [case for part in (*parts, *more) for case in part]


def chk_failures(case: Case, out: Path, err: str) -> None:
    """One row and one line for each bad run, none for any other."""
    lines = err.splitlines()
    rows = read_failures(out)
    assert rows.keys() == case.failed.keys(), rows
    for source, (stage, kind, words) in case.failed.items():
        row = rows[source]
        assert (row["stage"], row["class"]) == (stage, kind), row
        assert words in row["reason"] and row["remedy"], row
        assert sum(line.startswith(f"failed: {source}: {stage}: ") for line in lines) == 1
    assert len(lines) == len(case.failed), lines


def read_failures(out: Path) -> dict[str, dict[str, str]]:
    if not (out / "failures.tsv").exists():
        return {}
    header, *rows = [line.split("\t") for line in (out / "failures.tsv").read_text().split("\n")[:-1]]
    return {row[1]: dict(zip(header, row, strict=True)) for row in rows}


def chk_set(case: Case, src: Path, out: Path) -> None:
    """The set holds the good runs and those that only look strange, with their values, and nothing unfinished."""
    assert not list(out.glob(".partial-*"))
    expected = dict.fromkeys(case.good) | dict(case.taken)
    with ShardSet(out) as shards:
        assert {entry.source for entry in shards.runs} == expected.keys()
        for number, entry in enumerate(shards.runs):
            values = expected[entry.source]
            if values is None:
                image = nibabel.as_closest_canonical(nibabel.load(src / entry.source))
                values = image.get_fdata().reshape(*image.shape[:3], -1)
            error = np.abs(shards.read_run(number) - values[shards.mask].T.astype(np.float64))
            step = np.maximum(shards.statistics(number).scale, np.spacing(np.abs(values[shards.mask].T)))
            assert (error <= 0.5001 * step).all(), entry.source


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@contextmanager
def silent() -> Iterator[None]:
    """Fail on warnings that a terminal would show."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        yield
    assert [str(one.message) for one in said] == []


@contextmanager
def bounded(folder: Path) -> Iterator[None]:
    """Fail if the block takes long or much memory; nothing stays stuck in a pipe below `folder`."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, limits = memory_bytes(), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (before["VmSize"] + MEMORY_BYTES, limits[1]))
    done = threading.Event()
    watch = threading.Thread(target=free_pipes, args=(folder, done))
    watch.start()
    start = time.monotonic()
    try:
        yield
    finally:
        seconds = time.monotonic() - start
        done.set()
        watch.join()
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert seconds < TIME_S
    assert memory_bytes()["VmHWM"] <= max(before["VmHWM"], before["VmRSS"] + RESIDENT_BYTES)


def free_pipes(folder: Path, done: threading.Event) -> None:
    """Let go, after a while, whoever waits for a writer of a named pipe."""
    if done.wait(STUCK_S):
        return
    pipes = [path for path in folder.rglob("*") if not path.is_symlink() and stat.S_ISFIFO(path.stat().st_mode)]
    while not done.wait(0.1):
        for path in pipes:
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


def memory_bytes() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Vm")}
