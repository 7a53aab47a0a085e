"""A process for each family: imports, threads, forks and memory of the peers do not meet; all are timed alike."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from peers.contract import Consumer, Contender, Pausable, Read, WrongDataError
from peers.windows import Windows

FEW_PAGE_FAULTS = {f"MALLOC_{name}_": str(1 << 30) for name in ("MMAP_THRESHOLD", "TRIM_THRESHOLD", "TOP_PAD")}
"""glibc keeps freed memory, so that a fresh window of 35 MB is not 8,600 page faults."""
_SECONDS, _MOST_PASSES = 0.4, 16
"""A timing takes about so long: what is fast reads several epochs."""


class Family:
    """A family's process, as the bench sees it.

    Parameters
    ----------
    name
        One of `FAMILIES`.
    root
        Where windows and files lie.
    malloc
        Whether glibc is told to keep freed memory.
    """

    def __init__(self, name: str, root: Path, *, malloc: bool) -> None:
        self.malloc = malloc
        self._pipe, end = multiprocessing.get_context("spawn").Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=_serve, args=(end, name, root))
        os.environ.update(FEW_PAGE_FAULTS if malloc else {})
        self._process.start()  # glibc looks at its environment when a program starts
        for name in FEW_PAGE_FAULTS:
            os.environ.pop(name, None)
        end.close()

    def ask(self, what: str, **known: Any) -> dict[str, Any]:
        """Have it done; the answer holds `error` if it failed."""
        try:
            self._pipe.send((what, known))
            answer: dict[str, Any] = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            self._process.join()
            return {"error": f"its process ended with {self._process.exitcode}"}
        return answer

    def hang_up(self) -> None:
        """Let the process end by itself."""
        self._pipe.close()

    def close(self) -> None:
        """See to it that it has ended."""
        self.hang_up()
        self._process.join(20)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: Connection, name: str, root: Path) -> None:
    multiprocessing.set_start_method("fork", force=True)  # what torch's and the peers' workers have on Linux
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    bench = Served(name, root)
    while True:
        try:
            what, known = pipe.recv()
        except EOFError:
            bench.stack.close()
            return
        try:
            pipe.send(getattr(bench, what)(**known))
        except WrongDataError as error:
            pipe.send({"error": f"wrong data: {error}"})
        except Exception as error:  # a peer that fails is a line of the report, with its traceback on the screen
            traceback.print_exc()
            pipe.send({"error": traceback.format_exception_only(error)[-1].strip()})


class Served:
    """What a family's process can be asked for."""

    def __init__(self, name: str, root: Path) -> None:
        self._name, self._root, self._folder = name, root, root / name
        self._contenders: dict[str, Contender] = {}
        self._open: dict[str, Read] = {}
        self._passes: dict[str, int] = {}
        self.stack = ExitStack()
        self._windows = Windows(root / "windows")

    def prepare(self) -> dict[str, Any]:
        """Write the files; says which packages are not installed."""
        module = importlib.import_module(f"peers.{self._name}")
        absent = [package for name, package in module.PACKAGES.items() if importlib.util.find_spec(name) is None]
        if absent:
            return {"absent": absent}
        self._folder.mkdir()
        writing = multiprocessing.get_context("fork").Process(target=module.prepare, args=(self._windows, self._folder))
        writing.start()  # its memory goes with it
        writing.join()
        if writing.exitcode:
            return {"error": "its files could not be written"}
        return {"num_bytes": sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())}

    def start(self) -> dict[str, Any]:
        """Make the contenders; returns what the report says of each."""
        import torch

        torch.set_num_threads(1)
        module = importlib.import_module(f"peers.{self._name}")
        made = module.contenders(self._windows, self._folder)
        self._contenders = {f"{each.name} {each.delivers} {each.workers}": each for each in made}
        assert len(self._contenders) == len(made)
        names = ("name", "delivers", "workers", "cold", "again")
        return {"contenders": {key: {n: getattr(c, n) for n in names} for key, c in self._contenders.items()}}

    def time(self, key: str) -> dict[str, Any]:
        """Time some epochs, one at first; files are open since then, workers live as long as a timing."""
        contender = self._contenders[key]
        if contender.clock == "first":
            with contender.open() as read:
                found = self._timed(contender, read, 1)
            del read
            gc.collect()  # ends its workers now, not in a process that is forked later
            return found
        if key not in self._open:
            self._open[key] = self.stack.enter_context(contender.open())
        read = self._open[key]
        if contender.clock == "steady":
            read(Consumer())
        found = self._timed(contender, read, self._passes.get(key, 1))
        self._passes[key] = max(1, min(_MOST_PASSES, round(_SECONDS / found["epoch_s"])))
        return found

    def time_cold(self, key: str) -> dict[str, Any]:
        """Time one epoch with nothing in the page cache, in a process of its own, so that nothing stays mapped."""
        context = multiprocessing.get_context("fork")
        pipe, end = context.Pipe(duplex=False)
        process = context.Process(target=self._time_cold, args=(self._contenders[key], end))
        process.start()
        end.close()
        try:
            found: dict[str, Any] = pipe.recv()
        except EOFError:
            found = {"error": "failed with a cold page cache"}
        process.join()
        return found

    def _time_cold(self, contender: Contender, end: Connection) -> None:
        with contender.open() as read:
            if not contender.maps:
                read(Consumer())  # buffers are there and code is loaded, as with a warm cache
            if isinstance(read, Pausable):
                read.pause()
            forget(self._root)
            end.send(self._timed(contender, read, 1, whole=True))

    def _timed(self, contender: Contender, read: Read, passes: int, *, whole: bool = False) -> dict[str, Any]:
        seconds, windows = 0.0, 0
        consumers = []
        cpu, disk = cpu_seconds(), disk_bytes()
        for _ in range(passes):
            consumer = Consumer()
            consumers.append(consumer)
            began = time.perf_counter()
            read(consumer)
            ended = time.perf_counter()
            late = contender.clock == "first" and not whole
            seconds += ended - (consumer.first or began) if late else ended - began
            windows += len(consumer.seen) - late
        used, fetched = cpu_seconds() - cpu, disk_bytes() - disk
        expected: Callable = lambda key: self._windows.digest(contender.delivers, key)  # noqa: E731
        for consumer in consumers:
            count = contender.num_windows or len(self._windows.keys)
            consumer.check(expected, count, all_different=contender.clock != "steady")
        all_windows = sum(len(consumer.seen) for consumer in consumers)
        return {
            "wall_s": seconds / windows,
            "cpu_s": used / all_windows,
            "disk_bytes": fetched / all_windows,
            "epoch_s": seconds / passes,
        }


def cpu_seconds() -> float:
    """CPU time of this process, its threads, and its children, those that live and those that were waited for."""
    import psutil

    ended = os.times()
    total = time.process_time() + ended.children_user + ended.children_system
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return total


def disk_bytes() -> int:
    """Bytes that this process and its living children had fetched from the device."""
    import psutil

    own = psutil.Process()
    return sum(process.io_counters().read_bytes for process in (own, *own.children(recursive=True)))


def forget(folder: Path) -> None:
    """Drop files from this machine's page cache; the cache of a virtual machine's host may still hold them."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
