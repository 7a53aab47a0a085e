"""Reading JSON that anybody may have written: typed, bounded, and refused with one line.

Every function raises `ValueError` with a message that names the thing; callers say in which file.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from typing import Any

MAX_INT = 2**62
"""Sizes and offsets stay below, so that the sum of two still fits 64 bits."""
_MAX_DIGITS = 40
_MAX_DEPTH = 64
_BYTES_PER_CONTAINER = 32  # a shard's entry has 90; one bracket pair of Python objects costs 60


def shown(value: object) -> str:
    """`value` for a message: one line of bounded length."""
    return reprlib.repr(value)


def load_json(data: bytes | str, max_bytes: int) -> dict[str, Any]:
    """Parse one JSON object.

    Refused are: other encodings than UTF-8, NaN and infinities, numbers beyond 40 digits or float64, a key that
    comes twice in an object, nesting deeper than 64, and more lists and objects than honest text of
    that length holds (they cost 20 times their text).
    """
    if len(data) > max_bytes:
        raise ValueError(f"{len(data)} bytes, allowed {max_bytes}")
    text = data.decode() if isinstance(data, bytes) else data
    if text.count("[") + text.count("{") > 1000 + len(text) // _BYTES_PER_CONTAINER:
        raise ValueError("it consists of brackets")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_parse_int,
            parse_float=_parse_float,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    _check_depth(value)
    return value


def integer(value: object, what: str, low: int = 0, high: int = MAX_INT) -> int:
    """`value` if it is a whole number (no bool, no float) from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} is {shown(value)}, allowed are whole numbers from {low} to {high}")
    return value


def number(value: object, what: str) -> float:
    """`value` as float64 if it is a finite number."""
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"{what} is {shown(value)}, not a finite number")
    return float(value)  # type: ignore[arg-type]


def matching(value: object, pattern: re.Pattern[str], what: str) -> str:
    """`value` if it is text that `pattern` describes as a whole."""
    if type(value) is not str or pattern.fullmatch(value) is None:
        raise ValueError(f"{what} is {shown(value)}")
    return value


def is_a(value: object, kind: type, what: str) -> Any:
    """`value` if it is of exactly this JSON type (`str`, `list`, `dict`)."""
    if type(value) is not kind:
        raise ValueError(f"{what} is {shown(value)}, not a {kind.__name__}")
    return value


def item(values: dict[str, Any], key: str) -> Any:
    """`values[key]`; a missing key is named."""
    if key not in values:
        raise ValueError(f"{key} is missing")
    return values[key]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(twice)} is there twice")
    return found


def _parse_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _parse_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{shown(digits)} is beyond float64")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {_MAX_DEPTH}")
