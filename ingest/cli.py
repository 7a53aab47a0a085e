"""The command `ingest-fmri`."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

from ingest.config import IngestConfig
from ingest.sizes import format_size, plural
from shards.errors import EXIT_INTERRUPTED, BoldstreamError, OutputError, UsageError
from shards.flags import read_flags

if TYPE_CHECKING:
    from ingest.failures import Failure
    from ingest.summary import Summary

MAX_LINES_OF_A_CLASS = 5

_DESCRIPTION = """Turn a collection of 4D fMRI runs (NIfTI) into a shard set.

Run it again to add new subjects or to go on after an interruption: what is done stays as it is.

examples:
  ingest-fmri --src /data/derivatives/fmriprep --out shards/ --space MNI152NLin2009cAsym
  ingest-fmri --src runs.tsv --out shards/ --workers 8
  ingest-fmri --src /data/abcd --out shards/ --dry-run
  ingest-fmri --src /data/abcd --out shards/ --part 3/16        (of a job array; afterwards --merge)

exit codes: 0 all done or nothing to do, 1 internal error, 2 usage, 3 nothing matched, 4 some runs failed
(failures.tsv says why), 5 output unusable, 6 settings differ from the set's, 130 interrupted (run again to go on)
"""


class _Interrupted(BaseException):
    """SIGINT or SIGTERM."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    config = None
    try:
        config = _parse(argv)
        if config.doctor:
            from ingest.doctor import doctor

            return doctor(config)
        with _interruptible():
            from ingest.run import ingest

            out = sys.stderr if config.json else sys.stdout
            command = shlex.join(["ingest-fmri", *(sys.argv[1:] if argv is None else argv)])
            summary = ingest(config, lambda line: print(line, file=out, flush=True), command)
    except BoldstreamError as error:
        return _error(error)
    except OSError as error:
        return _error(_refused(config, error))
    except _Interrupted:
        print("interrupted: finished shards are kept, the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    _report(config, summary)
    return summary.exit_code


def _parse(argv: Sequence[str] | None) -> IngestConfig:
    import tyro

    parse = partial(
        tyro.cli,
        IngestConfig,
        prog="ingest-fmri",
        description=_DESCRIPTION,
        args=None if argv is None else list(argv),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
    config: IngestConfig = read_flags(parse, "ingest-fmri")
    return config


def _report(config: IngestConfig, summary: Summary) -> None:
    for line in failure_lines(summary.failures):
        print(line, file=sys.stderr)
    if config.json:
        print(json.dumps(_as_json(config, summary)))
        return
    for line in _lines(config, summary):
        print(line)


def failure_lines(failures: Sequence[Failure]) -> list[str]:
    """A line for each failed run, the first few of each class; failures.tsv has all."""
    lines = []
    for kind in dict.fromkeys(failure.kind for failure in failures):
        alike = [failure for failure in failures if failure.kind == kind]
        lines += [failure.line() for failure in alike[:MAX_LINES_OF_A_CLASS]]
        if len(alike) > MAX_LINES_OF_A_CLASS:
            lines.append(f"... and {plural(len(alike) - MAX_LINES_OF_A_CLASS, 'more run')} of class {kind}")
    return lines


def _lines(config: IngestConfig, summary: Summary) -> list[str]:
    if summary.dry_run:
        return [
            f"dry run: {summary.num_found} runs found, {summary.num_not_needed} already there, {summary.num_added} to "
            f"ingest, {summary.num_failed} would fail; nothing written",
            f"{format_size(summary.num_bytes_in)} in, about {format_size(summary.num_bytes_out)} out",
        ]
    if config.part is not None:
        return _lines_of_part(config, summary)
    failed = f", {summary.num_failed} failed (see {config.out / 'failures.tsv'})" if summary.num_failed else ""
    there = f"{plural(summary.num_runs, 'run')} in {plural(summary.num_shards, 'shard')}"
    if summary.num_dead_shards:
        failed += f", {plural(summary.num_dead_shards, 'shard')} not built (the same command tries again)"
    if not summary.num_added and not summary.failures and not summary.num_dead_shards:
        updated = f"; updated {', '.join(summary.written)}" if summary.written else ""
        return [f"nothing to do: {there}{failed}{updated}"]
    if not summary.num_runs:
        return [f"no run could be ingested, so there is no shard set{failed}"]
    ratio = f" ({summary.num_bytes_in / summary.num_bytes_out:.2g} to 1)" if summary.num_bytes_out else ""
    return [
        f"{plural(summary.num_added, 'run')} added to {config.out} in {summary.seconds:.1f} s: "
        f"{format_size(summary.num_bytes_in)} in, {format_size(summary.num_bytes_out)} out{ratio}",
        f"the set has {there}{failed}",
    ]


def _lines_of_part(config: IngestConfig, summary: Summary) -> list[str]:
    failed = f", {summary.num_failed} failed" if summary.num_failed else ""
    if summary.num_dead_shards:
        failed += f", {plural(summary.num_dead_shards, 'shard')} not built (the same command tries again)"
    return [
        f"part {config.part}: {plural(summary.num_runs, 'run')} in {plural(summary.num_shards, 'shard')}, "
        f"{summary.num_added} of them added in {summary.seconds:.1f} s{failed}",
        "once all parts are through: the same command with --merge in place of --part",
    ]


def _as_json(config: IngestConfig, summary: Summary) -> dict[str, Any]:
    values = {field.name: getattr(summary, field.name) for field in fields(summary)}
    values["failures"] = [failure.to_dict() for failure in summary.failures]
    return values | {"out": str(config.out), "exit_code": summary.exit_code}


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `_Interrupted`, once: a second signal must not disturb the clean-up."""

    def interrupt(*_: object) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise _Interrupted

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refused(config: IngestConfig | None, error: OSError) -> BoldstreamError:
    """A path that the system refuses, in words: below --out it is an output that cannot be used."""
    reason = error.strerror or str(error)
    if config is None:
        return UsageError(f"{error.filename}: {reason}; check the path and its permissions")
    path, out = (os.path.realpath(where) for where in (error.filename or config.out, config.out))
    if os.path.commonpath([path, out]) == out:
        return OutputError(f"--out {path}: {reason}; check its permissions and the room there")
    return UsageError(f"{path}: {reason}; check the path and its permissions")


def _error(error: BoldstreamError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code
