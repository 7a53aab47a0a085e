"""This process among its launcher's ranks: what each does alone, and where they meet.

Under `torchrun`, `srun` or `mpiexec` every rank runs the same command; started as a plain command there is one rank,
and neither DeepSpeed nor a process group is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from shards.errors import BoldstreamError

if TYPE_CHECKING:
    from training.engine.environment import Place

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """The ranks of a command; one where nothing launched several."""

    rank: int = 0
    world_size: int = 1
    place: Place | None = None

    @property
    def is_first(self) -> bool:
        """True on the rank that writes what is written once, and talks."""
        return self.rank == 0

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's share of some items: every world_size-th, from its own number on."""
        return items[self.rank :: self.world_size]

    def each(self, work: Callable[[], None]) -> None:
        """Do this rank's work, then wait for the others; if a rank failed, all raise the first one's error.

        Raises
        ------
        BoldstreamError
            What a rank raised; other errors end the process, and so the others.
        """
        failure: BoldstreamError | None = None
        try:
            work()
        except BoldstreamError as error:
            failure = error
        for found in self.gather(failure):
            if found is not None:
                raise found

    def first(self, work: Callable[[], T]) -> T:
        """Do it on rank 0; every rank gets the result, or the `BoldstreamError` it raised."""
        if self.place is None:
            return work()
        from training.engine.collective import first_rank_does

        return first_rank_does(work, self.place)

    def gather(self, value: T) -> list[T]:
        """Every rank's value in rank order, on every rank."""
        if self.place is None:
            return [value]
        from training.engine.collective import gather

        return gather(value, self.place)

    @property
    def device(self) -> Any:
        """The `torch.device` that this rank's model lives on."""
        import torch

        if self.place is not None:
            return self.place.device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def join() -> Ranks:
    """Join the other ranks if a launcher started several.

    Raises
    ------
    UsageError
        The launcher's variables are incomplete.
    """
    from training.engine.environment import enter, world_size_of_launcher

    if world_size_of_launcher() == 1:
        return Ranks()
    place = enter()
    return Ranks(rank=place.rank, world_size=place.world_size, place=place)
