"""The ledger: durable lines, torn ends, foreign files, two writers."""

from __future__ import annotations

import json

import pytest

from ingest.ledger import Ledger, replay
from shards.errors import OutputError
from shards.format import RunEntry

RUN = {"subject": "1", "session": "", "task": "", "run": "", "space": "", "tr_s": None, "bold": "a.nii", "entities": {}}
PLAN = {
    "action": "plan",
    "status": "ok",
    "config": {"name": "x"},
    "grid": {"shape": [2, 2, 2], "affine": [[1.0, 0.0, 0.0, 0.0]] * 4},
    "mask": "bWFzaw==",
    "mask_source": "a test",
    "shards": [{"name": "x-000000.tar", "runs": [RUN], "run_ids": ["sub-1"]}],
    "failures": [],
}
FAILURE: dict = {"run_id": "sub-1", "source": "a.nii", "stage": "data", "reason": "r", "remedy": "m"}
FAILURE |= {"signature": [["a.nii", 3, 4]]}
SHARD = {"action": "shard", "status": "ok", "name": "x-000000.tar", "info": None, "rows": [], "failures": [FAILURE]}


def test_what_is_appended_is_replayed(tmp_path):
    path = tmp_path / "ledger.jsonl"
    for line in (PLAN, SHARD):
        ledger = Ledger(path)
        ledger.append(line)
        ledger.close()
    state, valid_bytes = replay(path)
    assert valid_bytes == path.stat().st_size
    assert list(state.done) == ["x-000000.tar"] and not state.pending()
    assert state.failures["sub-1"].signature == (("a.nii", 3, 4),)


def test_a_line_torn_at_any_byte_is_dropped_and_overwritten(tmp_path):
    path = tmp_path / "ledger.jsonl"
    first, second = (json.dumps(line).encode() + b"\n" for line in (PLAN, SHARD))
    for cut in range(len(second)):
        path.write_bytes(first + second[:cut])
        ledger = Ledger(path)
        assert [shard.name for shard in ledger.state.pending()] == ["x-000000.tar"]
        ledger.append(SHARD)
        ledger.close()
        assert path.read_bytes() == first + second


def test_a_first_line_torn_at_any_byte_is_an_empty_ledger(tmp_path):
    path = tmp_path / "ledger.jsonl"
    line = json.dumps(PLAN).encode()
    for cut in range(len(line) + 1):
        path.write_bytes(line[:cut])
        assert replay(path)[0].config is None


def test_a_shard_that_lost_its_worker_stays_pending(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(PLAN)
    ledger.append({**SHARD, "status": "error", "failures": []})
    assert len(ledger.state.pending()) == 1


def test_foreign_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"event": "of another program"}\n')
    with pytest.raises(OutputError, match=r"not a ledger of ingest-fmri"):
        replay(path)
    path.write_text(json.dumps(PLAN) + '\n{"action": "shard"\n' + json.dumps(SHARD) + "\n")
    with pytest.raises(OutputError, match="line 2: damaged"):
        replay(path)


def test_a_second_writer_is_refused(tmp_path):
    first = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(OutputError, match="another ingest-fmri"):
        Ledger(tmp_path / "ledger.jsonl")
    first.close()
    Ledger(tmp_path / "ledger.jsonl").close()


def test_a_ledger_without_a_line_leaves_no_file(tmp_path):
    Ledger(tmp_path / "ledger.jsonl").close()
    assert not list(tmp_path.iterdir())


def test_rows_keep_nan(tmp_path):
    from ingest.ledger import row_to_dict

    values = dict.fromkeys(RunEntry.__dataclass_fields__, 1) | {"run_id": "sub-1", "mean_fd_mm": float("nan")}
    row = row_to_dict(RunEntry(**values))
    assert json.loads(json.dumps(row, allow_nan=False))["mean_fd_mm"] is None
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(PLAN)
    ledger.append({**SHARD, "rows": [row], "failures": []})
    assert ledger.state.rows["sub-1"].mean_fd_mm != ledger.state.rows["sub-1"].mean_fd_mm
