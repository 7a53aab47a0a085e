"""Does the model see dynamics, and what does each phase add? Cohorts whose label is known to live in one place.

    python scripts/bench/dynamics.py [--out FOLDER] [--seeds 1 2 3] [--json FILE]

For each seed two cohorts are simulated and ingested: in one the groups differ in dynamics alone (who leads whom;
mean, variance and static connectivity are equal), in the other in anatomy alone (mean image). `train.py` trains on
each, with all phases and with phases left out, and `eval-fmri report` scores untouched subjects beside its baselines.
What is finished is not done again: a second call with the same folder goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SUBJECTS, FRAMES = 160, 200
SPLIT = "--split_stratify group site --split_fractions 0.6 0.15 0.25"
BY_GRADIENT = "--sequence_lr_scale 1 --lr 1e-3 --steps 150 --batch_size 8"
EFFECTS = {
    "dynamics": "--effect-fc 0 --effect-dynamics 0.4",
    "anatomy": "--effect-fc 0 --effect-anatomy 0.1",
}
BASELINES = {"mean_image": "mean image", "fc": "FC + logistic"}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way from voxels to the label.

    Attributes
    ----------
    init
        Run that phase 3 starts from: a key of `SHARED`, or none.
    flags
        Of phase 3.
    """

    name: str
    flags: str
    init: str


SHARED = {
    "p1": f"--phase 1 {SPLIT}",
    "p2": "--phase 2 --init {p1}",
    "p2-alone": f"--phase 2 --init none {SPLIT}",
}
ARMS = (
    Arm(name="three phases", init="p2", flags=""),
    Arm(name="without phase 2", init="p1", flags=""),
    Arm(name="without phase 1", init="p2-alone", flags=""),
    Arm(name="without both", init="none", flags=SPLIT),
    Arm(name="without both, all by gradient", init="none", flags=f"{SPLIT} --encoder_lr_scale 1 {BY_GRADIENT}"),
    Arm(name="three phases, CLS pooling", init="p2", flags=f"--pool cls {BY_GRADIENT}"),
    Arm(name="three phases, mean pooling", init="p2", flags=f"--pool mean {BY_GRADIENT}"),
)
OF_ANATOMY = ("three phases",)


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("dynamics-bench"), help="folder for cohorts, sets and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    began = time.monotonic()
    rows = []
    for seed in options.seeds:
        for label in EFFECTS:
            rows += run_cohort(options.out / f"{label}-{seed}", label, seed, options.preset)
    report = {
        "what": "AUROC on untouched subjects of simulated cohorts",
        "subjects": SUBJECTS,
        "frames": FRAMES,
        "effects": EFFECTS,
        "preset": options.preset,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {name: version(name) for name in ("boldstream", "torch", "deepspeed", "numpy")},
        "rows": rows,
    }
    print(table(rows, options.seeds))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def run_cohort(folder: Path, label: str, seed: int, preset: str) -> list[dict[str, Any]]:
    """Simulate, ingest, train every arm, score; one row a model."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, cohort = folder / "shards", folder / "cohort"
    size = f"--subjects {SUBJECTS} --frames {FRAMES} --seed {seed}"
    call(f"simulate-fmri --out {cohort} {size} {EFFECTS[label]}")
    call(f"ingest-fmri --src {cohort} --out {shards} --workers 2")
    train = f"{sys.executable} {ROOT / 'train.py'} --preset {preset} --shards {shards}"
    runs = {"none": "none"} | {name: str(folder / name) for name in SHARED}
    arms = [arm for arm in ARMS if label == "dynamics" or arm.name in OF_ANATOMY]
    for name in ("p1", "p2", "p2-alone"):
        if any(arm.init == name for arm in arms) or name == "p1":
            call(f"{train} --out {runs[name]} {SHARED[name].format(**runs)}")
    rows = []
    for number, arm in enumerate(arms):
        run, report = folder / f"p3-{number}", folder / f"report-{number}"
        call(f"{train} --phase 3 --target group --init {runs[arm.init]} --out {run} {arm.flags}")
        if not (report / "metrics.json").exists():
            atlas = cohort / "atlas-boldstream_dseg.nii.gz"
            rivals = f"--models {' '.join(BASELINES)} --skip controls embed explain"
            call(f"eval-fmri report --checkpoint {run} --shards {shards} --out {report} --atlas {atlas} {rivals}")
        rows += scores(report / "metrics.json", label, seed, arm.name, with_baselines=number == 0)
    return rows


def scores(path: Path, label: str, seed: int, arm: str, *, with_baselines: bool) -> list[dict[str, Any]]:
    """AUROC of our model, and of the baselines if asked for."""
    found = {model["key"]: model["scores"]["auroc"]["value"] for model in json.loads(path.read_text())["models"]}
    wanted = {arm: found["ours"]}
    if with_baselines:
        wanted |= {name: found[key] for key, name in BASELINES.items()}
    return [{"label": label, "seed": seed, "model": name, "auroc": value} for name, value in wanted.items()]


def table(rows: list[dict[str, Any]], seeds: list[int]) -> str:
    """A row a model, a column a seed, and the mean."""
    lines = []
    for label in EFFECTS:
        lines += [f"label in {label} alone", f"{'':34}" + "".join(f"seed {seed:<5}" for seed in seeds) + "mean"]
        for name in dict.fromkeys(row["model"] for row in rows if row["label"] == label):
            values = [row["auroc"] for row in rows if (row["label"], row["model"]) == (label, name)]
            cells = "".join(f"{value:<10.3f}" for value in values)
            lines.append(f"{name:34}{cells}{statistics.mean(values):.3f}")
        lines.append("")
    return "\n".join(lines)


def call(command: str) -> None:
    """Run a command, its output in front of the user; stop at the first failure."""
    print(f"$ {command}", file=sys.stderr, flush=True)
    subprocess.run(command.split(), check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
