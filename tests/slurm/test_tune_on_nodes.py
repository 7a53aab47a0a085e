"""`scripts/slurm/tune.sbatch`: an array of workers that share one search."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from two_nodes import SCRIPTS, ended, kill, submit, wait_until

pytestmark = pytest.mark.slow

FAKE = """
import json, signal, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(exist_ok=True)
def note(text):
    with (out / "starts").open("a") as file:
        file.write(text + "\\n")
def stopped(*_):
    note("stopped")
    sys.exit(85)
signal.signal(signal.SIGTERM, stopped)
again = (out / "starts").exists()
note("started")
time.sleep(2 if again or Path("go").exists() else 600)
(out / "model.json").write_text(json.dumps({"val_score": float(sys.argv[sys.argv.index("--lr") + 1])}))
"""
OWN = """search=(
  --out tuned --trials 6 --search lr=1e-4:1:log
  -- python fake/train.py --phase 3 --init none --target sex --shards shards
"""


def test_an_array_of_workers_shares_a_search_also_after_usr1(checkout: Path) -> None:
    pytest.importorskip("optuna")
    (checkout / "fake").mkdir()
    (checkout / "fake" / "train.py").write_text(FAKE)
    shipped = (SCRIPTS / "tune.sbatch").read_text()
    head, rest = shipped.split("search=(\n")
    (checkout / "tune.sbatch").write_text(head + OWN + ")" + rest.split("\n)", 1)[1])
    job = submit(checkout / "tune.sbatch", "--array=0-1")
    running = [checkout / "tuned" / f"trial-{k:05d}" / "starts" for k in range(2)]
    wait_until(lambda: all(path.exists() for path in running))
    (checkout / "go").touch()
    subprocess.run(["scancel", "--signal=USR1", "--batch", f"{job}_1"], check=True)  # as --signal=B:USR1@180 does
    wait_until(lambda: any("stopped" in path.read_text() for path in running))
    (stopped,) = [path for path in running if "stopped" in path.read_text()]
    (other,) = {*running} - {stopped}
    worker = (other.parent.parent / f"{other.parent.name}.alive").read_text().split()[1]
    kill(int(worker))  # the other dies without a word
    assert ended(f"{job}_1") == ["COMPLETED"]
    wait_until(lambda: (checkout / "tuned" / "trials.tsv").read_text().count("complete") == 6)
    assert sum(path.is_dir() for path in (checkout / "tuned").iterdir()) == 6
    for k in range(6):
        starts = (checkout / "tuned" / f"trial-{k:05d}" / "starts").read_text().split()
        assert starts == (["started", "stopped", "started"] if k < 2 else ["started"]), k
