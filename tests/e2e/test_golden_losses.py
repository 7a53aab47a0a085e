"""Losses of 50 steps of each phase, as they were: a change that should not touch the results touches none.

    python tests/e2e/test_golden_losses.py --write

writes `tests/e2e/golden/phase{1,2,3}.json` anew, after a change that is meant to alter what is learnt. A changed
golden file needs a line in CHANGELOG.md, under API or CONFIG, that says who is affected.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_training import Trainings
from travelling_waves import travelling_waves

GOLDEN = Path(__file__).parent / "golden"
NUM_STEPS = 50
RELATIVE = 2e-4
"""What processors may differ by: summation order and instruction sets change the last bits, and steps add up."""
COMMON = (
    f"--preset tiny --shards shards --steps {NUM_STEPS} --latent 8 --channels 8 8 --width 16 --depth 1 --heads 2"
    " --window 10 --batch_size 4 --val_every 50 --val_runs 2 --log_every 1 --pca_frames 64 --lr 1e-3"
).split()
PHASES = {
    "phase1": "--phase 1 --active_weight 0.5 --split_fractions 0.5 0.25 0.25",
    "phase2": "--phase 2 --init phase1 --contrast_weight 0.1 --accumulation 2",
    "phase3": "--phase 3 --init phase2 --target group --encoder_lr_scale 1 --sequence_lr_scale 1 --patience 99",
}


def train_all(
    folder: Path, make_shard_set: Callable[..., Any], mask_XYZ: np.ndarray, times: int
) -> list[dict[str, list[float]]]:
    """Train the three phases one after the other, several times; the losses of each phase."""
    table = "participant_id\tgroup\n" + "".join(f"sub-{k:02d}\t{'ab'[k % 2]}\n" for k in range(16))
    signals = travelling_waves(int(mask_XYZ.sum()))
    make_shard_set(folder / "shards", signals=signals, participants=table, runs_per_shard=16, mask=mask_XYZ)
    found = []
    with Trainings(folder) as trainings:
        for _ in range(times):
            for phase, flags in PHASES.items():
                shutil.rmtree(folder / phase, ignore_errors=True)
                trainings.run(phase, [*COMMON, *flags.split(), "--out", phase])
            found.append({phase: losses(folder / phase) for phase in PHASES})
    return found


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["event"] == "train"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that this module's tests share."""
    return tmp_path_factory.mktemp("golden")


@pytest.fixture
def found(place: Path, make_shard_set: Callable[..., Any], mask: np.ndarray) -> list[dict[str, list[float]]]:
    """The losses of two runs on this machine, trained once."""
    path = place / "losses.json"
    if not path.exists():
        path.write_text(json.dumps(train_all(place, make_shard_set, mask, 2)))
    return json.loads(path.read_text())


@pytest.mark.parametrize("phase", list(PHASES))
def test_losses_are_those_of_the_golden_file(found: list[dict[str, list[float]]], phase: str) -> None:
    golden, own = json.loads((GOLDEN / f"{phase}.json").read_text()), found[0][phase]
    assert golden["flags"] == [*COMMON, *PHASES[phase].split()], (
        "write the golden files anew, see the head of this file"
    )
    assert len(own) == NUM_STEPS and np.ptp(own) > 100 * RELATIVE * np.mean(own)
    np.testing.assert_allclose(own, golden["losses"], rtol=RELATIVE, atol=0)


def test_a_second_run_is_equal_to_the_bit(found: list[dict[str, list[float]]]) -> None:
    assert found[0] == found[1]


def _write() -> None:
    """Write the golden files from a run on this machine."""
    from importlib.metadata import version

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import conftest

    mask_XYZ = conftest.mask.__wrapped__()
    make_shard_set = conftest.make_shard_set.__wrapped__(mask_XYZ)
    with tempfile.TemporaryDirectory() as folder:
        (found,) = train_all(Path(folder), make_shard_set, mask_XYZ, 1)
    GOLDEN.mkdir(exist_ok=True)
    for phase, values in found.items():
        software = {name: version(name) for name in ("torch", "deepspeed", "numpy")}
        record = {"flags": [*COMMON, *PHASES[phase].split()], "software": software, "losses": values}
        (GOLDEN / f"{phase}.json").write_text(json.dumps(record, indent=1) + "\n")
        print(f"{phase}: {values[0]:.4f} to {values[-1]:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", required=True, help="write the golden files anew")
    parser.parse_args()
    _write()
