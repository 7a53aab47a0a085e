"""Train one phase: `python train.py --help`; also under `deepspeed`, `torchrun` and `srun`."""

from __future__ import annotations

from typing import Any

from training.cli import main


def validate(y_true: Any, output: Any, kind: str) -> float:
    """Score of the validation subjects; `training` itself knows no metric."""
    from eval.scoring.metrics import subject_score

    return subject_score(y_true, output, kind)  # type: ignore[arg-type]


if __name__ == "__main__":
    raise SystemExit(main(validate=validate))
