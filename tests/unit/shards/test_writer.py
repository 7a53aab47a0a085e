"""The writer: same bytes, all or nothing, and refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards.errors import OutputError, UsageError
from shards.format import xxh3
from shards.values import encode
from shards.writer import EncodedRun, atomic_file, write_atomic, write_shard


def toy_run(run_id: str, seed: int = 0) -> EncodedRun:
    signal = np.random.default_rng(seed).standard_normal((30, 50)).astype("f4")
    return EncodedRun(run_id=run_id, meta={"tr_s": 2.0}, encoded=encode(signal, "int8"))


def test_golden_bytes_of_format_version_1(tmp_path: Path) -> None:
    signal = (np.arange(30 * 50) % 23).reshape(30, 50).astype("i2")
    run = EncodedRun(run_id="sub-01_task-rest", meta={"tr_s": 2.0}, encoded=encode(signal, "int8"))
    write_shard(tmp_path / "a.tar", [run])
    assert xxh3((tmp_path / "a.tar").read_bytes()) == "df6fc763f8cf4acdaebc9436b1c104e1"


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        written = write_shard(tmp_path / name, (toy_run(f"sub-{k}", k) for k in range(4)))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    data = (tmp_path / "b.tar").read_bytes()
    assert (written.info.xxh3, written.info.num_bytes, written.info.num_runs) == (xxh3(data), len(data), 4)


@pytest.mark.parametrize("names", [["b", "a"], ["a", "a"], ["a.b"], ["x" * 91], [""]])
def test_bad_ids_and_bad_order_leave_nothing_behind(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(UsageError, match="run id"):
        write_shard(tmp_path / "a.tar", [toy_run(name) for name in names])
    assert list(tmp_path.iterdir()) == []


def test_an_error_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "table"
    write_atomic(path, "old")
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="absent"):
        write_atomic(tmp_path / "absent" / "table", "x")


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from shards.errors import OutputError; from shards.writer import write_atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomic(Path(sys.argv[1]) / 'big', bytes(5000))\n"
        "except OutputError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "make room" in done.stdout
    assert list(tmp_path.iterdir()) == []
