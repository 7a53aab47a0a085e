"""Presets trained for the same time on the same shard set: who reconstructs unseen subjects better.

    python scripts/bench/pretraining.py --shards SET --minutes 10 [--presets base tff] [--lr_factors 1]
                                     [--out scripts/bench/results/pretraining.json] [-- FLAGS OF train.py]

Each preset trains phase 1 with the same windows, batch, loss and split, one after the other, with the learning rate
of its preset (times each of --lr_factors; the best one counts). A short run measures its start and its step; from
both follow the steps that fill the time, so that the cosine of the learning rate ends when the time does. The time is
that of the process without its validations: imports and principal components count. The error is the mean squared
error of residuals of the validation subjects, in units of each voxel's variance: 1 is what the mean image gives.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from timed_training import Timed, TrainingError, timed_training

from training.config import TrainConfig, resolve

WARM_STEPS = 6
VALIDATIONS = 6
MIN_STEPS = VALIDATIONS  # below, the time asked for is exceeded; the table says by how much


def main() -> int:
    """Train the presets in turn and print their table; 1 if one does not train."""
    options, flags = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what is under way is ended
    rows = []
    with tempfile.TemporaryDirectory(prefix="boldstream-bench-", dir=options.folder) as name:
        for preset in options.presets:
            for factor in options.lr_factors:
                try:
                    rows.append(bench(preset, factor, options, flags, Path(name)))
                except TrainingError as error:
                    print(error, file=sys.stderr)
                    return 1
                print(line(rows[-1]), file=sys.stderr)
    report = facts(options, flags) | {"rows": rows, "summary": summary(rows)}
    print(table(rows))
    for what, figure in report["summary"].items():
        print(f"- {what}: {figure}")
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The command line, and the flags for train.py behind `--`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True, help="folder of the shard set")
    parser.add_argument("--minutes", type=float, default=10.0, help="time of each training")
    parser.add_argument("--presets", nargs="+", default=["base", "tff"])
    parser.add_argument("--phase", choices=["1"], default="1")
    parser.add_argument("--lr_factors", nargs="+", type=float, default=[1.0], help="times the preset's learning rate")
    parser.add_argument("--batch_size", type=int, default=4, help="windows of a batch, the same for all")
    parser.add_argument("--window", default="20")
    parser.add_argument("--val_runs", type=int, default=8, help="runs of validation subjects")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    words = sys.argv[1:]
    behind = words[words.index("--") + 1 :] if "--" in words else []
    return parser.parse_args(words[: len(words) - len(behind) - ("--" in words)]), behind


def bench(preset: str, factor: float, options: argparse.Namespace, flags: list[str], folder: Path) -> dict[str, Any]:
    """Time a preset, then train it for the time asked for."""
    config = resolve(TrainConfig(phase=1, preset=preset, shards=(options.shards,), out=folder))
    learning_rate = factor * float(config.lr or 0)
    common = ["--phase", options.phase, "--preset", preset, "--shards", options.shards, "--lr", f"{learning_rate:.6g}"]
    common += ["--batch_size", str(options.batch_size), "--window", options.window, *flags]
    name = f"{preset}-{factor:g}"
    warm_flags = ["--steps", str(WARM_STEPS), "--val_every", str(WARM_STEPS), "--val_runs", "1", "--log_every", "1"]
    warm = timed_training([*common, *warm_flags], folder / f"{name}-warm")
    step_s = warm.median("step_s", skip=2)
    steps = max(MIN_STEPS, round((60 * options.minutes - warm.started_s) / step_s))
    every = max(1, steps // VALIDATIONS)
    long_flags = ["--steps", str(steps), "--val_every", str(every), "--val_runs", str(options.val_runs)]
    long_flags += ["--log_every", str(max(1, every // 4)), "--save_every", str(steps), "--keep_checkpoints", "1"]
    done = timed_training([*common, *long_flags], folder / name)
    return {
        "preset": preset,
        "lr": learning_rate,
        "batch_size": options.batch_size,
        "parameters": done.of("start")[0]["parameters"],
        "steps": steps,
        "started_s": round(done.started_s, 1),
        "minutes": round(training_s(done, steps) / 60, 2),
        "frames_per_s": round(done.median("frames_per_s"), 1),
        "data_wait": round(done.median("data_wait"), 4),
        "memory_gb": round(max(record["memory_gb"] for record in done.of("train")), 2),
        "curve": curve(done),
        "mse": done.of("val")[-1]["mse"],
        "mse_of_the_mean": done.of("val")[-1]["mse_mean"],
    }


def training_s(done: Timed, step: int) -> float:
    """Seconds of the process until a step is done, validations left out."""
    return done.started_s + step * done.median("step_s")


def curve(done: Timed) -> list[dict[str, float]]:
    """Validation error along time."""
    return [{"minutes": round(training_s(done, v["step"]) / 60, 3), "mse": round(v["mse"], 5)} for v in done.of("val")]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each preset at its best learning rate, and when the first one passed the end of the others."""
    best = {row["preset"]: row for row in sorted(rows, key=lambda row: -row["mse"])}
    names = list(dict.fromkeys(row["preset"] for row in rows))
    found: dict[str, Any] = {f"validation error of {name}": round(best[name]["mse"], 4) for name in names}
    for other in names[1:]:
        passed = [point["minutes"] for point in best[names[0]]["curve"] if point["mse"] < best[other]["mse"]]
        found[f"minutes until {names[0]} was below {other}'s last error"] = passed[0] if passed else None
    return found


def facts(options: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """What the figures belong to."""
    import torch

    return {
        "command": " ".join(["python", "scripts/bench/pretraining.py", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "versions": {name: version(name) for name in ("torch", "deepspeed")},
        "date": time.strftime("%Y-%m-%d"),
        "shards": Path(options.shards).name,
        "flags": flags,
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    points = [row["curve"][k * (len(row["curve"]) - 1) // 3] for k in range(4)]
    errors = "  ".join(f"{point['mse']:.4f} at {point['minutes']:6.2f} min" for point in points)
    return (
        f"{row['preset']:<10} lr {row['lr']:<8.2g} {row['parameters'] / 1e6:>8.2f} M  {row['steps']:>7} steps  "
        f"{row['frames_per_s']:>8.1f} frames/s  {errors}"
    )


def table(rows: list[dict[str, Any]]) -> str:
    """All rows, the lowest error first."""
    return "\n".join(line(row) for row in sorted(rows, key=lambda row: row["mse"]))


if __name__ == "__main__":
    sys.exit(main())
