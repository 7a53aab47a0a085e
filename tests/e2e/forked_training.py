"""Trainings as forks of one process that has imported everything: a start costs milliseconds, not seconds.

As a module: `Trainings`, what tests use. As a script: the process that forks; it reads a JSON object a
line from standard input and answers each with one.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Trainings:
    """Starts and awaits `train.py` in a folder; a context manager.

    Parameters
    ----------
    folder
        Working directory of the trainings; `<name>.<rank>.txt` there is what each rank told.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Trainings:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        env |= {"DS_ACCELERATOR": "cpu", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen([sys.executable, __file__], cwd=self.folder, env=env, **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stdin.close()
        self.server.wait(timeout=60)

    def start(
        self, name: str, arguments: list[str], *, ranks: int = 1, before: str = "", limit_s: int = 200
    ) -> list[int]:
        """Start a training and return the process of each rank; `before` is python run in each of them first."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        request = {"name": name, "arguments": arguments, "ranks": ranks, "port": port}
        return self._ask(request | {"before": before, "limit_s": limit_s})

    def end(self, name: str, pids: list[int], expect: int | list[int] = 0) -> str:
        """Wait for all ranks, check their exit codes (negative: the signal), and return what the first one told."""
        codes = self._ask({"wait": pids})
        told = [(self.folder / f"{name}.{rank}.txt").read_text() for rank in range(len(pids))]
        expected = expect if isinstance(expect, list) else [expect] * len(pids)
        assert codes == expected, "\n".join([str(codes), *(text[-3000:] for text in told)])
        return told[0]

    def run(
        self, name: str, arguments: list[str], *, ranks: int = 1, expect: int | list[int] = 0, **options: Any
    ) -> str:
        """`start` and `end`."""
        return self.end(name, self.start(name, arguments, ranks=ranks, **options), expect)

    def _ask(self, request: dict[str, Any]) -> list[int]:
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())


def validate(truth_S: Any, output_SK: Any, kind: str) -> float:
    """Phase 3's score: minus the mean squared error of the first output."""
    del kind
    return -float(((output_SK[:, 0] - truth_S) ** 2).mean())


def _serve() -> None:
    """Import what every training would, then fork one for each request."""
    names = ["training.run", "tyro", "torch._inductor.compile_fx", "deepspeed.runtime.zero.muon.original_muon"]
    for name in [*names, "deepspeed.checkpoint.ds_to_universal", "setuptools"]:
        importlib.import_module(name)
    sys.modules["deepspeed.ops"].__compatible_ops__  # noqa: B018 - probed at the first look

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in request["wait"]]
        else:
            answer = [_fork(request, rank) for rank in range(request["ranks"])]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _fork(request: dict[str, Any], rank: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        signal.alarm(request["limit_s"])
        told = os.open(f"{request['name']}.{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(told, 2)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(request["ranks"])}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": request["port"]}
        exec(request["before"], {"__name__": "before"})
        from training.cli import main

        code = main(request["arguments"], validate=validate)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
