"""Checkpoints of a run's own folder: complete or absent, and refused where they do not belong.

`checkpoints/<tag>/` is written under a temporary name, sealed (`files.json`: size and hash of every file), renamed,
and only then named by the atomically replaced file `checkpoints/latest`. The newest ones are kept, and
`best-<step>.safetensors`, the weights of the best validation, as long as a kept checkpoint refers to it.
DeepSpeed's files are pickles: they are read from the run's own folder only, after `identity.json` beside
them has been compared and every byte of them is what was written.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from shards.errors import BoldstreamError, CorruptShardError, MismatchError, OutputError
from shards.writer import TEMPORARY as UNFINISHED
from shards.writer import write_atomic
from training.checkpoints import universal
from training.checkpoints.identity import Identity, check_continues
from training.checkpoints.seal import FILES, check_seal, files_below, read_seal, seal, seal_text
from training.engine.collective import first_rank_does, gather
from training.engine.environment import Place
from training.engine.randomness import random_state, restore_random_state, seed_all

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
LATEST = "latest"
IDENTITY = "identity.json"
TEMPORARY = "partial-"
BEST = "best-"
TAG = re.compile(r"step\d{8,}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A checkpoint to continue from."""

    tag: str
    identity: Identity


class Checkpoints:
    """The checkpoints of one run folder.

    Parameters
    ----------
    folder
        Run folder.
    identity
        Of the run as it is now.
    keep
        Newest checkpoints to keep.
    place
        This rank.
    """

    def __init__(self, folder: Path, identity: Identity, keep: int, place: Place) -> None:
        self.folder = folder / FOLDER
        self.identity, self.keep, self.place = identity, keep, place

    def latest(self) -> Found | None:
        """The checkpoint that `latest` names, compared with this run's identity; None if there is none.

        Raises
        ------
        MismatchError
            It belongs to another shard set, split or configuration; each difference is named.
        CorruptShardError
            `latest` names a checkpoint that is not there or not readable.
        """
        path = self.folder / LATEST
        if not path.is_file():
            return None
        tag = path.read_text().strip()
        if not TAG.fullmatch(tag) or not (self.folder / tag).is_dir():
            raise CorruptShardError(f"{path}: names {tag[:40]!r}, which is not there; {self._remedy(tag)}")
        try:
            identity = Identity.from_json((self.folder / tag / IDENTITY).read_text())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise CorruptShardError(f"{self.folder / tag / IDENTITY}: {what}; {self._remedy(tag)}") from None
        check_continues(identity, self.identity, self.folder.parent)
        return Found(tag=tag, identity=identity)

    def save(self, engine: Any, step: int, state: dict[str, Any], pinned: str | None = None) -> str:
        """Write a checkpoint; every rank must call it.

        Parameters
        ----------
        engine
            DeepSpeed engine.
        step
            Optimizer steps done.
        state
            What else to remember; `resume` gives it back.
        pinned
            Name of the file of best weights that this checkpoint refers to; it is kept as long as the checkpoint.

        Raises
        ------
        OutputError
            No room; the checkpoints before are untouched.
        """
        tag = f"step{step:08d}"
        temporary = self.folder / f"{TEMPORARY}{tag}"
        first_rank_does(self._clear, self.place)
        client_state = {"step": step, "random": gather(random_state(), self.place), "run": state}
        client_state |= universal.INFO | {"groups": universal.parameter_groups_of(engine)}
        with _full_disk_named(self.folder):
            engine.save_checkpoint(str(self.folder), tag=temporary.name, client_state=client_state, save_latest=False)

        def complete() -> list[str]:
            write_atomic(temporary / IDENTITY, self.identity.to_json())
            return files_below(temporary) + ([f"../{pinned}"] if pinned else [])

        names = first_rank_does(complete, self.place)
        records = seal(temporary, names, self.place)
        first_rank_does(lambda: self._publish(temporary, tag, seal_text(records)), self.place)
        return tag

    def resume(self, engine: Any, found: Found) -> tuple[int, dict[str, Any]]:
        """Load a checkpoint into a fresh engine and this process's generators; every rank must call it.

        On another number of ranks the checkpoint is converted on the way (`training.checkpoints.universal`), and the
        generators are seeded anew from (seed, step, rank).

        Returns
        -------
        step, state
            As they were given to `save`.

        Raises
        ------
        CorruptShardError
            A file is missing, or its bytes are not those that were written.
        MismatchError
            Other versions of torch or DeepSpeed cannot read it.
        """
        try:
            check_seal(self.folder / found.tag, self.place)
        except CorruptShardError as error:
            raise CorruptShardError(f"{error}; {self._remedy(found.tag)}") from None
        before, now = found.identity.layout, self.identity.layout
        with self._versions_named(found.identity.software):
            if before.world_size == now.world_size or now.zero_stage == 0:
                loaded, client_state = engine.load_checkpoint(str(self.folder), tag=found.tag)
            else:
                loaded, client_state = universal.load_converted(engine, self.folder, found.tag, self.place)
        if loaded is None:
            raise CorruptShardError(f"{self.folder / found.tag}: nothing to load; {self._remedy(found.tag)}")
        step = client_state["step"]
        if before.world_size == now.world_size:
            restore_random_state(client_state["random"][self.place.rank])
        else:
            seed_all(self.identity.same["seed"], step, self.place.rank)
            logger.info(
                "%s: saved by %d ranks, continued by %d: the same windows in each step; the random numbers of "
                "dropout start anew from (seed, step, rank)",
                found.tag,
                before.world_size,
                now.world_size,
            )
        return step, client_state["run"]

    def save_best(self, step: int, weights: dict[str, Tensor]) -> str:
        """Write the weights of the best step so far (rank 0); returns the file's name."""
        from safetensors.torch import save

        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{BEST}step{step:08d}.safetensors"
        write_atomic(self.folder / name, save({key: tensor.contiguous() for key, tensor in weights.items()}))
        return name

    def load_best(self, name: str) -> dict[str, Tensor]:
        """The weights that `save_best` wrote under this name."""
        from safetensors.torch import load_file

        return load_file(self.folder / name)

    def _clear(self) -> None:
        """Make the folder; remove what a crash left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for rest in self.folder.glob(f"{TEMPORARY}*"):
            shutil.rmtree(rest)
        for folder in (self.folder, self.folder.parent):
            for file in folder.glob(f"{UNFINISHED}*"):
                file.unlink()

    def _publish(self, temporary: Path, tag: str, sealed: str) -> None:
        write_atomic(temporary / FILES, sealed)
        self._remove(tag)  # never named by `latest`: a crash came between
        temporary.rename(self.folder / tag)
        write_atomic(self.folder / LATEST, tag + "\n")
        tags = self._tags()
        kept = tags[: tags.index(tag) + 1][-self.keep :]
        for old in tags:
            if old not in kept:
                self._remove(old)
        pinned = {name for one in kept for name in self._sealed_names(one)}
        for weights in self.folder.glob(f"{BEST}*"):
            if f"../{weights.name}" not in pinned:
                weights.unlink()

    def _remove(self, tag: str) -> None:
        """A checkpoint that is half removed must not have its name any more."""
        if (self.folder / tag).exists():
            rest = (self.folder / tag).rename(self.folder / f"{TEMPORARY}removed-{tag}")
            shutil.rmtree(rest)

    def _sealed_names(self, tag: str) -> set[str]:
        try:
            return set(read_seal(self.folder / tag))
        except CorruptShardError:  # told when somebody wants to continue from it
            return set()

    def _tags(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("step*") if TAG.fullmatch(path.name))

    def _remedy(self, tag: str) -> str:
        others = [other for other in self._tags() if other < tag]
        if not others:
            return "restore it, or choose another --out to start anew"
        return f"restore it, or write {others[-1]} into {self.folder / LATEST} to continue from there"

    @contextmanager
    def _versions_named(self, software: dict[str, str]) -> Iterator[None]:
        """Turn what goes wrong in loading another version's files into one line."""
        now = self.identity.software
        differing = [f"{name} {software.get(name)}, now {now[name]}" for name in now if software.get(name) != now[name]]
        if differing:
            logger.warning("%s: saved by %s", self.folder.parent, "; ".join(differing))
        try:
            yield
        except BoldstreamError:
            raise
        except Exception as error:
            if not differing:
                raise
            raise MismatchError(
                f"{self.folder.parent}: saved by {'; '.join(differing)}, which cannot be read ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''}); install these versions, or choose another --out"
            ) from error


@contextmanager
def _full_disk_named(folder: Path) -> Iterator[None]:
    """Turn a failed write into one line; torch tells some as RuntimeError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror or error}; make room, the same command continues") from error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
            raise
        raise OutputError(
            f"{folder}: a checkpoint could not be written; make room, the same command continues"
        ) from error
