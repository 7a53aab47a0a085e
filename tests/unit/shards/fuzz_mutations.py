"""Mutations of valid bytes, JSON and tables; each takes a generator, so that a seed and a number name a case."""

from __future__ import annotations

from copy import deepcopy
from random import Random
from typing import Any

EDGES = [0, 1, -1, 2, 7, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1]
EDGES += [2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**19, 10**40, -(2**63)]
_TEXTS = [
    "",
    "0",
    "-1",
    "1_0",
    " 1",
    "\uff11",
    "n/a",
    "nan",
    "inf",
    "1e999",
    "-0.0",
    "9" * 5000,
    "..",
    "../x",
    "/dev/zero",
]
_TEXTS += ["a\0b", "\ud800", "x" * 3000, "%00", "%zz", "true", "sub-01_task-rest", "tiny-000000.tar", "0" * 32]
_JSON = [None, True, False, 1.5, 1e308, float("nan"), float("inf"), 10**400, [], {}, [[]], {"a": []}, [1] * 100]


def mutated(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    """One to four changes of bytes: flips, cuts, splices, repeats, and whole numbers at the edge."""
    room = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(room) + 1)
        size = rng.choice([1, 2, 4, 8, 12, 60, 512])
        match rng.randrange(8):
            case 0 | 1 if at < len(room):
                room[at] ^= 1 << rng.randrange(8)
            case 2 if at < len(room):
                room[at] = rng.randrange(256)
            case 3:
                del room[at : at + size]
            case 4:
                room[at:at] = room[at : at + size]
            case 5:
                other = rng.choice(others)
                begin = rng.randrange(len(other) + 1)
                room[at : at + size] = other[begin : begin + size]
            case 6:
                width = rng.choice([1, 2, 4, 8])
                room[at : at + width] = (rng.choice(EDGES) % 2 ** (8 * width)).to_bytes(
                    width, rng.choice(["little", "big"])
                )
            case _:
                text = str(rng.choice(EDGES)) if rng.random() < 0.5 else f"{rng.choice(EDGES) % 8**11:011o}"
                room[at : at + len(text)] = text.encode()
    return bytes(room)


def mutated_json(rng: Random, value: Any) -> Any:
    """A copy of a JSON value in which one to three places hold something else, or are gone, or come twice."""
    copy = deepcopy(value)
    for _ in range(rng.choice([1, 1, 2, 3])):
        places = list(_places(copy))
        if not places:
            break
        outer, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                outer[key] = rng.choice(EDGES)
            case 1:
                outer[key] = rng.choice(_TEXTS)
            case 2:
                outer[key] = deepcopy(rng.choice(_JSON))
            case 3:
                del outer[key]
            case 4:
                outer[key] = [deepcopy(outer[key]) for _ in range(rng.choice([1, 2, 20]))]
            case _:
                other, other_key = rng.choice(places)
                if other_key in other if isinstance(other, dict) else other_key < len(other):
                    outer[key] = deepcopy(other[other_key])
    return copy


def mutated_table(rng: Random, text: str) -> str:
    """A table with one to three cells, rows or columns changed."""
    rows = [line.split("\t") for line in text.split("\n")]
    for _ in range(rng.choice([1, 1, 2, 3])):
        row = rng.randrange(len(rows)) if rng.random() < 0.2 else rng.randrange(1, max(2, len(rows) - 1))
        row = min(row, len(rows) - 1)
        column = rng.randrange(len(rows[row]))
        match rng.randrange(8):
            case 0 | 1:
                rows[row][column] = str(rng.choice(EDGES))
            case 2 | 3:
                rows[row][column] = rng.choice(_TEXTS)
            case 4:
                cell = rows[row][column]
                near = cell.isdigit() and len(cell) < 30
                step = rng.choice([-512, -1, 1, 512, 10**6])
                rows[row][column] = str(int(cell) + step) if near else cell + "\r"
            case 5:
                rows.insert(row, list(rng.choice(rows)))
            case 6:
                rows[row].insert(column, rows[row][column])
            case _:
                del rows[row][column]
                rows[row] = rows[row] or [""]
    return "\n".join("\t".join(row) for row in rows)


def _places(value: Any) -> Any:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])
