"""Does the report tell the truth? Cohorts whose label is known to live in one place, or nowhere.

    python scripts/bench/known_effects.py [--out FOLDER] [--json FILE] [--null_seeds 20] [--only truth|null]

Truth: five cohorts are simulated and ingested whose two groups differ in static connectivity, in dynamics alone, in
anatomy alone (mean image), in their scanner alone (most controls at one site, most patients at the other), or not at
all. Three phases are trained on each and `eval-fmri report` fills its table: the row that sees what differs has to
win, and the others must not.
Null: many small cohorts in which nothing differs; how many 95 % intervals of how many rows exclude chance?

What is finished is not done again: a second call with the same folder goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SPLIT = "--split_stratify group site --split_fractions 0.6 0.15 0.25"
SIZE = "--subjects 160 --frames 200"
EFFECTS = {
    "static connectivity": "--effect-fc 0.3",
    "dynamics alone": "--effect-fc 0 --effect-dynamics 0.4",
    "anatomy alone": "--effect-fc 0 --effect-anatomy 0.1",
    "scanner alone": "--effect-fc 0 --site-offset 0.3 --site-imbalance 0.8",
    "nothing": "--effect-fc 0",
}
NULL_SIZE = "--subjects 80 --frames 60 --voxel-mm 8 --parcels 40"
NULL_FLAGS = "--permutations 100 --models majority confounds mean_image alff fc fc_krr fc_tangent mlp"
NULL_STEPS = {1: "--steps 40", 2: "--steps 40", 3: "--steps 16"}


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("known-effects"), help="folder for cohorts, sets and runs")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--seed", type=int, default=1, help="of the cohorts with an effect")
    parser.add_argument("--null_seeds", type=int, default=20, help="cohorts without one")
    parser.add_argument("--only", choices=["truth", "null"])
    parser.add_argument("--at_once", type=int, default=2, help="cohorts at the same time")
    options = parser.parse_args()
    began = time.monotonic()
    report: dict[str, Any] = {
        "what": "headline metric of every row of the report, on untouched subjects of simulated cohorts",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {name: version(name) for name in ("boldstream", "torch", "deepspeed", "numpy", "scikit-learn")},
    }
    with ThreadPoolExecutor(options.at_once) as pool:
        if options.only != "null":
            jobs = [(options.out / name.replace(" ", "-"), f"{SIZE} {flags} --seed {options.seed}", {}, "")
                    for name, flags in EFFECTS.items()]  # fmt: skip
            found = list(pool.map(lambda job: cohort(*job), jobs))
            report["truth"] = {"size": SIZE, "effects": EFFECTS} | {"rows": dict(zip(EFFECTS, found, strict=True))}
            print(truth_table(report["truth"]["rows"]))
        if options.only != "truth":
            flags = f"{NULL_SIZE} --effect-fc 0"
            jobs = [(options.out / f"null-{seed}", f"{flags} --seed {seed}", NULL_STEPS, NULL_FLAGS)
                    for seed in range(options.null_seeds)]  # fmt: skip
            found = list(pool.map(lambda job: cohort(*job), jobs))
            report["null"] = {"size": flags, "steps": NULL_STEPS} | false_alarms(found)
            print(null_table(report["null"]))
    report["minutes"] = round((time.monotonic() - began) / 60, 1)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def cohort(folder: Path, simulation: str, steps: dict[int, str], flags: str) -> dict[str, dict[str, Any]]:
    """Simulate, ingest, train three phases, report; each row's headline estimate."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, atlas = folder / "shards", folder / "cohort" / "atlas-boldstream_dseg.nii.gz"
    call(f"simulate-fmri --out {folder / 'cohort'} {simulation} --workers 1")
    call(f"ingest-fmri --src {folder / 'cohort'} --out {shards} --workers 1")
    for phase in (1, 2, 3):
        start = SPLIT if phase == 1 else f"--init {folder / f'p{phase - 1}'}"
        target = "--target group" if phase == 3 else ""
        run = f"--preset tiny --phase {phase} --shards {shards} --out {folder / f'p{phase}'}"
        call(f"{sys.executable} {ROOT / 'train.py'} {run} {start} {target} {steps.get(phase, '')}")
    metrics = folder / "report" / "metrics.json"
    if not metrics.exists():
        where = f"--checkpoint {folder / 'p3'} --shards {shards} --out {metrics.parent} --atlas {atlas}"
        call(f"eval-fmri report {where} --skip embed explain {flags}")
    record = json.loads(metrics.read_text())
    return {
        model["key"]: {"label": model["label"], "role": model["role"], **model["scores"][record["headline"]]}
        for model in record["models"]
    }


def truth_table(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A row a model, a column a cohort; a star where the interval lies above chance, brackets around the winner."""
    keys = list(dict.fromkeys(key for found in rows.values() for key in found))
    lines = [f"{'AUROC':44}" + "".join(f"{name:22}" for name in rows)]
    for key in keys:
        label = next(found[key]["label"] for found in rows.values() if key in found)
        lines.append(f"{label:44}" + "".join(f"{_cell(found, key):22}" for found in rows.values()))
    return "\n".join((*lines, "* interval above 0.5   [ ] highest of ours and the baselines that is above 0.5"))


def _cell(found: dict[str, dict[str, Any]], key: str) -> str:
    if key not in found or found[key]["value"] is None:
        return "-"
    real = {name: row["value"] for name, row in found.items() if row["role"] != "control" and (row["low"] or 0) > 0.5}
    text = f"{found[key]['value']:.3f}" + ("*" if (found[key]["low"] or 0) > 0.5 else "")
    return f"[{text}]" if real and key == max(real, key=lambda name: real[name]) else text


def false_alarms(found: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """How often each row's interval excludes chance; rows that say the same of everyone cannot."""
    rows = {}
    for key in found[0]:
        scores = [one[key] for one in found if key in one and one[key]["low"] is not None]
        above, below = sum(row["low"] > 0.5 for row in scores), sum(row["high"] < 0.5 for row in scores)
        rows[key] = {"label": found[0][key]["label"], "above": above, "below": below, "of": len(scores),
                     "values": [round(row["value"], 4) for row in scores]}  # fmt: skip
    judged = [row for row in rows.values() if len(set(row["values"])) > 1]
    return {
        "rows": rows,
        "excluded": sum(row["above"] + row["below"] for row in judged),
        "of": sum(row["of"] for row in judged),
    }


def null_table(null: dict[str, Any]) -> str:
    """A line a row, and the total."""
    lines = [
        f"{row['label']:44} above {row['above']:2}  below {row['below']:2}  of {row['of']}"
        for row in null["rows"].values()
    ]
    share = null["excluded"] / null["of"]
    return "\n".join(
        (*lines, f"{null['excluded']} of {null['of']} intervals exclude chance ({share:.1%}; expected 5 %)")
    )


def call(command: str) -> None:
    """Run a command; its output is shown if it fails."""
    print(f"$ {command}", file=sys.stderr, flush=True)
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
        raise SystemExit(f"{command.split()[0]} ended with {done.returncode}")


if __name__ == "__main__":
    main()
