"""What a user sees of a build's progress."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from ingest.progress import Lines, Standing, fitting, rich_bar

GB = 10**9


class Clock:
    """Time that a test turns."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def standing(clock, runs: int = 100) -> Standing:
    return Standing(runs, runs * GB, clock)


def do(standing: Standing, clock: Clock, runs: int, seconds_each: float) -> None:
    for _ in range(runs):
        clock.now += seconds_each
        standing.advance(runs=1, num_bytes=GB, failures=0)


def test_speed_counts_from_the_first_worker_and_not_from_the_wait_in_a_queue(clock):
    build = standing(clock)
    clock.now += 7200
    build.begin()
    do(build, clock, 10, 4)
    assert build.bytes_per_s == pytest.approx(GB / 4)
    assert build.left_s == pytest.approx(90 * 4)


def test_speed_is_that_of_the_last_minutes(clock):
    build = standing(clock, 1000)
    build.begin()
    do(build, clock, 100, 10)
    do(build, clock, 100, 5)
    assert build.bytes_per_s == pytest.approx(GB / 5, rel=0.02)


def test_a_build_that_stands_still_has_ever_longer_to_go(clock):
    build = standing(clock)
    build.begin()
    do(build, clock, 10, 4)
    before = build.left_s
    clock.now += 30
    assert build.left_s == before
    clock.now += 200
    assert build.left_s > 2 * before


def test_nothing_is_forecast_before_anything_is_known(clock):
    build = standing(clock, 10_000)
    assert build.bytes_per_s is None and build.left_s is None
    build.begin()
    do(build, clock, 1, 30)
    assert build.bytes_per_s is not None and build.left_s is None


def test_failed_runs_count_for_the_bar_and_are_named(clock):
    build = standing(clock, 3)
    build.begin()
    build.advance(runs=1, num_bytes=GB, failures=1)
    assert build.parts()[:2] == ["1 of 3 runs", "1 failed"]


def test_without_a_terminal_there_is_a_line_a_minute(clock):
    file = io.StringIO()
    lines = Lines(standing(clock), file)
    lines.begin()
    for _ in range(12):
        clock.now += 15
        lines.advance(runs=1, num_bytes=GB, failures=0)
    assert file.getvalue().splitlines() == [
        "4 of 100 runs, 24 min left, 66.7 MB/s, 4 GB of 100 GB",
        "8 of 100 runs, 23 min left, 66.7 MB/s, 8 GB of 100 GB",
        "12 of 100 runs, 22 min left, 66.7 MB/s, 12 GB of 100 GB",
    ]


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (5, "4 of 100 runs"),
        (30, "4 of 100 runs, 24 min left"),
        (80, "4 of 100 runs, 24 min left, 66.7 MB/s, 4 GB of 100 GB"),
    ],
)
def test_narrow_terminals_get_the_first_words(width, text):
    assert fitting(["4 of 100 runs", "24 min left", "66.7 MB/s", "4 GB of 100 GB"], width) == text


def drawn(clock, **console) -> str:
    file = io.StringIO()
    with rich_bar(standing(clock), Console(file=file, force_terminal=True, **console)) as bar:
        bar.begin()
        for _ in range(4):
            clock.now += 15
            bar.advance(runs=1, num_bytes=GB, failures=0)
        bar.say("a line with [brackets]")
    return file.getvalue()


@pytest.mark.parametrize("width", [24, 40, 80, 200])
def test_the_bar_never_breaks_its_line(clock, width):
    text = drawn(clock, width=width, no_color=True)
    for line in text.replace("\r", "\n").split("\n"):
        shown = "".join(part.partition("m")[2] if k else part for k, part in enumerate(line.split("\x1b[")))
        assert len(shown.strip()) <= width
    assert "4 of 100 runs" in text


def test_lines_beside_the_bar_come_as_they_are(clock):
    assert "a line with [brackets]" in drawn(clock, width=80)


def test_no_color_is_respected(clock, monkeypatch):
    colourful = drawn(clock, width=80, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    plain = drawn(clock, width=80, color_system="standard")
    assert [bool(re.search(r"\x1b\[[0-9;]*[39][0-7]m", text)) for text in (colourful, plain)] == [True, False]
