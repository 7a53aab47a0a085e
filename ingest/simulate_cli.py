"""The command `simulate-fmri`: flags, one line of progress, one line of error, exit codes."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import time
from collections.abc import Sequence

from ingest.simulate_config import SimulateConfig
from shards.errors import EXIT_INTERRUPTED, EXIT_OK, BoldstreamError, UsageError

_SECONDS_BETWEEN_LINES = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run `simulate-fmri`.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        0 done or nothing to do, 2 usage, 5 output unusable, 6 another configuration, 130 interrupted.
    """
    try:
        config = _parse(argv)
        return _run(config)
    except BoldstreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parse(argv: Sequence[str] | None) -> SimulateConfig:
    """Read the flags; tyro's framed complaints become one line."""
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(SimulateConfig, prog="simulate-fmri", args=argv)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_one_line(said.getvalue())) from None


def _one_line(framed: str) -> str:
    """Take the sentences out of a box drawn with lines."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", framed)
    lines = [re.sub(r"[─│╭╮╰╯┌┐└┘|+-]{3,}|[│╭╮╰╯┌┐└┘─]", " ", line).strip() for line in plain.splitlines()]
    return re.sub(r"\s+", " ", " ".join(line for line in lines if line)).strip()


def _run(config: SimulateConfig) -> int:
    from ingest.simulate import simulate

    started = time.monotonic()
    progress = _Progress(started)
    num_written = simulate(config, progress.show)
    progress.end()
    if not num_written:
        print(f"{config.out} holds this simulation already: nothing to do")
        return EXIT_OK
    num_bytes = sum(path.stat().st_size for path in config.out.rglob("*") if path.is_file())
    print(
        f"{config.out}: {num_written} of {config.subjects} subjects written in "
        f"{time.monotonic() - started:.1f} s, {num_bytes / 1e6:,.1f} MB in all"
    )
    return EXIT_OK


class _Progress:
    """One line that is rewritten on a terminal; a line a minute elsewhere."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._on_terminal = sys.stderr.isatty()
        self._last_line = started

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        left_s = (now - self._started) / done * (total - done)
        line = f"{done}/{total} subjects, about {left_s:.0f} s left"
        if self._on_terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._on_terminal:
            print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
