"""Numbers and lists as the page writes them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from ingest.report.measures import Measure

_DIGITS = {"tsnr": 1, "fd": 3, "constant": 1, "minutes": 1}


def number(value: float, digits: int = 0) -> str:
    """`value` with that many decimals, thousands separated, a real minus sign; 'unknown' if it is none."""
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "unknown"


def significant(value: float, digits: int = 3) -> str:
    """`value` with that many significant digits; all digits of a larger whole number."""
    if value == 0 or not math.isfinite(value):
        return number(value)
    return number(value, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def decimals(measure: Measure, median: float) -> int:
    """Decimals of a measure's values, the same on the whole page."""
    if measure.key in _DIGITS:
        return _DIGITS[measure.key]
    least = 2 if measure.key == "error" else 0
    if median == 0 or not math.isfinite(median):
        return least
    return max(least, 2 - math.floor(math.log10(abs(median))))


def quantity(measure: Measure, value: float, median: float) -> str:
    """A measure's value with its unit."""
    text = number(value, decimals(measure, median) if value else 0)
    return f"{text} {measure.unit}" if measure.unit else text


def hours(seconds: float) -> str:
    """A duration: minutes below two hours, else hours."""
    value, unit = (seconds / 60, "minutes") if seconds < 7200 else (seconds / 3600, "hours")
    return f"{number(value, 1 if value < 100 else 0)} {unit}"


def tally(values: Iterable[str], noun: str, most: int = 6) -> str:
    """`2 s (33 runs), 2.5 s (1 run)`, the commonest first."""
    counts = Counter(values)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{value} ({count:,} {noun}{'' if count == 1 else 's'})" for value, count in ordered[:most]]
    return ", ".join(words) + (f" and {len(ordered) - most:,} other values" if len(ordered) > most else "")


def of_runs(count: int) -> str:
    """`1 run`, `2,000 runs`."""
    return f"{count:,} run{'' if count == 1 else 's'}"
