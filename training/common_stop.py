"""Stopping at one step on all ranks, without asking at every step.

No rank may leave out a step that another one has begun, or that one waits for ever in it. Until a signal comes a step
costs a lock; then every rank says in which step it is, and all go on to the largest of them.
"""

import sys
import threading
from collections.abc import Callable

from torch.distributed import PrefixStore

from training.failure import signal_name

POLL = 0.5  # seconds between two looks for another rank's failure
STOPPING = "\n{}: saving after this step, then leaving (once more: leave at once)\n"


class CommonStop:
    """One rank's part in the agreement. `hear` is called by the thread that watches, the rest by the training.

    Args:
        rank: This process's number.
        world: How many ranks there are.
        check: Raises where another rank has failed.
    """

    def __init__(self, rank: int, world: int, check: Callable[[], None]) -> None:
        self.rank, self.world, self._check = rank, world, check
        self.signal: int | None = None  # the one that all stop for
        self._asked: int | None = None
        self._lock = threading.Lock()
        self._begun, self._last = 0, 0
        self._heard, self._decided = False, threading.Event()

    def ask(self, number: int) -> None:
        """Ask all ranks to stop, because of signal `number`. May be called in a signal's handler."""
        self._asked = self._asked or number

    def begin(self, step: int) -> None:
        """Training begins after `step` optimizer steps."""
        self._goes_on(step)

    def after(self, step: int) -> bool:
        """Whether to stop after `step` optimizer steps; the same answer at the same step on all ranks."""
        if self._goes_on(step):
            return False
        while not self._decided.wait(POLL):
            self._check()
        return step >= self._last

    def _goes_on(self, step: int) -> bool:
        """Begin the step after `step`, unless somebody has asked to stop."""
        with self._lock:
            if not self._heard:
                self._begun = step + 1
            return not self._heard

    def hear(self, store: PrefixStore) -> None:
        """Pass a signal on, and agree on the last step where one has come to any rank.

        Called again and again, on a thread of its own: the training may wait for a device, in a step that the others
        must know of.
        """
        if self._asked is not None and self.signal is None:
            store.compare_set("stop", "", str(self._asked))
        if self.signal is None and store.check(["stop"]):
            self.signal = int(store.get("stop"))
            if self.rank == 0:
                sys.stderr.write(STOPPING.format(signal_name(self.signal)))
            with self._lock:
                self._heard, begun = True, self._begun
            store.set(f"begun/{self.rank}", str(begun))
        if self.signal is not None and not self._decided.is_set():
            keys = [f"begun/{rank}" for rank in range(self.world)]
            if store.check(keys):
                self._last = max(int(store.get(key)) for key in keys)
                self._decided.set()
