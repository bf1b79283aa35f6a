"""The first failure of a run, as all of its ranks hear of it."""

import signal
from dataclasses import dataclass

from torch.distributed import DistError

_LIBRARIES = ("gloo", "NCCL", "ProcessGroup", "Connection closed", "Connection reset")


@dataclass(frozen=True)
class Failure:
    """The first failure: its rank, the exit code of all ranks, and one line on it."""

    rank: int
    code: int
    text: str

    def __str__(self) -> str:
        names_it = self.text.startswith(("rank ", "no answer from rank "))
        return self.text if names_it else f"rank {self.rank}: {self.text}"


class OtherRankFailed(Exception):  # noqa: N818 - an event elsewhere, not an error of this rank
    """Another rank has failed while this one waited for it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)


def is_consequence(error: BaseException) -> bool:
    """Whether an exception may come from another rank's end: what the libraries of collective operations raise."""
    text = str(error)
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in _LIBRARIES)
    )


def signal_name(number: int) -> str:
    """SIGTERM for 15."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
