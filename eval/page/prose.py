"""How the report writes numbers, intervals, p-values and lists. Nothing here computes a result."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eval.scoring.bootstrap import Estimate

PERSONS = ("Brier", "Pearson", "Spearman")


def number(value: float, digits: int = 3) -> str:
    """A value for people: three decimals below 10, three significant digits above, or 'undefined'."""
    if not math.isfinite(value):
        return "undefined"
    decimals = digits if abs(value) < 10 else max(0, digits - int(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def interval(found: Estimate) -> str:
    """'0.712 to 0.934', or 'undefined'."""
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return "undefined"
    return f"{number(found.low)} to {number(found.high)}"


def with_interval(found: Estimate) -> str:
    """'0.823 (95 % interval 0.712 to 0.934)'."""
    return f"{number(found.value)} (95 % interval {interval(found)})"


def in_sentence(label: str) -> str:
    """A metric's label as a word: 'balanced accuracy', but 'AUROC' and 'Brier score'."""
    return label if label.startswith(PERSONS) or not label[1].islower() else label[0].lower() + label[1:]


def p_number(p: float) -> str:
    """'0.0131', or 'undefined'."""
    return f"{p:.4f}" if math.isfinite(p) else "undefined"


def p_text(p: float) -> str:
    """'p = 0.0131', or 'p undefined'."""
    return f"p = {p_number(p)}" if math.isfinite(p) else "p undefined"


def listed(names: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else "".join(names)


def counted(count: int, thing: str, things: str = "") -> str:
    """'1 subject', '3 subjects'."""
    return f"{count} {thing if count == 1 else things or thing + 's'}"
