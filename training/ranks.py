"""The ranks of one run, beside the training's own collectives: they join, agree at the start, stop and fail together.

A collective operation answers only when all ranks take part, so that it cannot tell that one of them is gone. Here a
thread of each rank writes a sign of life every half second into a small store (torch's TCPStore, which rank 0 or
torchrun's agent holds) and reads there whether another rank has failed or wants to stop. Nothing waits for a device.

    failure    the first failure of any rank; set once
    life/R     a counter and the line of code at which rank R stands, or `left`
    ready, start/R, verdict       the start: rank 0 has a corpus, what rank R starts with, that all start alike
    stop, begun/R                 a signal that asks all to stop, and the step that each was in (`common_stop`)
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any, NoReturn

from torch.distributed import PrefixStore, TCPStore

from errors import InputError, Interrupted
from training.common_stop import CommonStop
from training.failure import Failure, OtherRankFailed, is_consequence, signal_name

POLL = 0.5  # seconds between two signs of life
SILENCE = 30.0  # seconds without one, after which a rank counts as dead
JOIN = 300.0  # seconds in which all ranks have to start: importing torch from a cluster's file system takes minutes
GRACE = 5.0  # seconds that a rank has to come to an end by itself when another one has failed
GO = "go"
GONE = "rank 0 is gone"
LEFT = "left"  # the last that a rank writes
FOREVER = 10 * 365 * 86400.0  # a corpus may take days to prepare; a failure ends the waiting


class Ranks:
    """One rank's view of the others.

    Args:
        rank: This process's number.
        world: How many there are.
        address: Of the store, (host, port); port 0 takes a free one.
        holds: Whether this process holds the store.
        prefix: Of the keys: ranks started anew under one agent must not read what their predecessors wrote.
    """

    def __init__(self, rank: int, world: int, address: tuple[str, int], *, holds: bool, prefix: str = "") -> None:
        self.rank, self.world = rank, world
        self.host, self.port = address
        self.failure: Failure | None = None
        self.stop = CommonStop(rank, world, self._raise_others)
        self.before_exit: Callable[[], None] = lambda: None
        self.children: list[Popen[bytes]] = []  # ranks that this one has started, in their order, from rank 1 on
        self._holds, self._prefix = holds, f"sinkless/{prefix}"
        self._store = self._connect(holds)
        # A store's operations exclude each other, so that the thread needs a connection of its own.
        self._watched = self._connect(False)
        self._done = threading.Event()
        self._lives = dict.fromkeys(range(world), ("", 0))
        self._beats = 0
        self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)
        self._thread.start()

    def _connect(self, holds: bool) -> PrefixStore:
        try:
            store = TCPStore(
                self.host,
                self.port,
                is_master=holds,
                timeout=timedelta(seconds=JOIN),
                wait_for_workers=False,
                multi_tenant=True,  # torch's own process group then shares it
            )
        except RuntimeError as error:
            where = f"{self.host}:{self.port}"
            if holds:
                raise InputError(f"rank 0 cannot listen at {where}, MASTER_ADDR and MASTER_PORT: {error}") from None
            if self.rank == 1:
                raise InputError(f"there is no rank 0 at {where}, MASTER_ADDR and MASTER_PORT") from None
            raise SystemExit(2) from None
        self.port = store.port
        return PrefixStore(self._prefix, store)

    # The start.

    def wait_for(self, keys: Sequence[str], limit: float, what: str) -> list[str]:
        """Values of keys that ranks set, one key a rank or one of rank 0.

        It polls, so that a signal or another rank's failure ends it. InputError: not all are there within `limit`
        seconds; it names the ranks.
        """
        end = time.monotonic() + limit
        while not self._store.check(list(keys)):
            self._raise_others()
            if time.monotonic() > end:
                missing = [key.rpartition("/")[2] for key in keys if not self._store.check([key])]
                raise InputError(f"no answer from rank {', '.join(missing)} of {self.world} in {limit:.0f} s: {what}")
            time.sleep(0.05)
        return [self._store.get(key).decode() for key in keys]

    def gather(self, name: str, value: Any, limit: float, what: str) -> list[Any]:
        """What every rank gives, by rank, on rank 0; nothing on the others. InputError as in `wait_for`."""
        self._store.set(f"{name}/{self.rank}", json.dumps(value))
        if self.rank:
            return []
        keys = [f"{name}/{rank}" for rank in range(self.world)]
        return [json.loads(text) for text in self.wait_for(keys, limit, what)]

    def wait_for_rank_0(self) -> bool:
        """Wait until rank 0 has its corpus and its checkpoint; False where it has found that there is nothing to do."""
        return self.wait_for(["ready"], FOREVER, "preparing") == [GO]

    def agree(self, start: dict[str, Any]) -> None:
        """Compare what the ranks start with. InputError on rank 0: the first rank and key that differ."""
        if self.rank == 0:
            self._store.set("ready", GO)
        starts = self.gather("start", start, JOIN, "it has not started")
        if self.rank:
            self.wait_for(["verdict"], FOREVER, "the comparison of all ranks")
            return
        for rank, there in enumerate(starts):
            for key in sorted(start.keys() | there.keys()):
                if (mine := start.get(key)) != (theirs := there.get(key)):
                    raise InputError(f"rank {rank} does not start as rank 0: {key} is {mine} on rank 0, {theirs} there")
        self._store.set("verdict", GO)

    # Failing together.

    def tell(self, error: BaseException) -> None:
        """Let the others know of an exception where it is met, before files and devices are closed.

        Not of one that may come from another rank's end: who that was has to be found out first.
        """
        if not is_consequence(error):
            self.failed(error)

    def failed(self, error: BaseException) -> Failure:
        """The run's first failure, which is `error` unless another rank was faster. May be called again."""
        if self.failure is None and is_consequence(error):
            # The connection to a rank is closed before anything else tells that the rank is dead.
            end = time.monotonic() + SILENCE + 10 * POLL
            while self.failure is None and time.monotonic() < end:
                time.sleep(0.05)
        if self.failure is not None:
            return self.failure
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, InputError):
            return self.fail(2, text)
        if isinstance(error, Interrupted):
            return self.fail(128 + error.number, f"stopped by {signal_name(error.number)}")
        where = f"; {self._positions()}" if is_consequence(error) else ""
        return self.fail(1, f"{type(error).__name__}: {text}{where}")

    def fail(self, code: int, text: str) -> Failure:
        """Put a failure of this rank down, unless there is one already; returns the first."""
        return self._first(self._store, Failure(self.rank, code, text))

    def leave_at_once(self, number: int) -> NoReturn:
        """Leave in the middle of a step, and let the others leave too, because of signal `number`."""
        self._done.set()
        with suppress(RuntimeError):
            self.fail(128 + number, f"stopped by {signal_name(number)}")
            self._store.set(f"life/{self.rank}", LEFT)
            if self._holds:
                time.sleep(2 * POLL)  # the store goes with this process: the others read first why
        os._exit(128 + number)

    def _first(self, store: PrefixStore, failure: Failure) -> Failure:
        try:
            found = store.compare_set("failure", "", json.dumps(asdict(failure)))
        except RuntimeError:  # the store has gone with rank 0
            return failure
        return Failure(**json.loads(found))

    def _raise_others(self) -> None:
        if self.failure is not None:
            raise OtherRankFailed(self.failure)

    def _positions(self) -> str:
        """Where the other ranks stand, as far as they have said."""
        with suppress(RuntimeError):
            lives = {rank: self._life(self._store, rank) for rank in range(self.world) if rank != self.rank}
            return ", ".join(f"rank {rank} is in {life.partition(' ')[2] or life}" for rank, life in lives.items())
        return "where the others are is unknown"

    @staticmethod
    def _life(store: PrefixStore, rank: int) -> str:
        """What rank `rank` last wrote; empty where it has not begun to."""
        key = f"life/{rank}"
        return store.get(key).decode() if store.check([key]) else ""

    # The thread.

    def _watch(self) -> None:
        while not self._done.wait(POLL):
            try:
                failure = self._look()
            except RuntimeError:  # the store is gone, and with it the process that held it
                failure = Failure(0, 1, GONE)
            if failure is not None:
                self.failure = failure
                break
        else:
            return
        # A rank that fails by itself still has files to close.
        if not self._done.wait(6 * GRACE if failure.rank == self.rank else GRACE):
            self._exit(failure)

    def _look(self) -> Failure | None:
        """Give a sign of life and look for those of the others. Returns the run's failure, if there is one."""
        self._beats += 1
        self._watched.set(f"life/{self.rank}", f"{self._beats} {_position()}")
        if self._watched.check(["failure"]):
            return Failure(**json.loads(self._watched.get("failure")))
        lost = self._dead_child() or self._silent_rank()
        if lost is not None:
            return self._first(self._watched, lost)
        self.stop.hear(self._watched)
        return None

    def _dead_child(self) -> Failure | None:
        for rank, child in enumerate(self.children, 1):
            code = child.poll()
            if code and self._life(self._watched, rank) != LEFT:
                how = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
                return Failure(rank, 1, f"rank {rank} {how}")
        return None

    def _silent_rank(self) -> Failure | None:
        """Rank 0 watches all, the others watch rank 0. A rank that has not begun to speak is awaited elsewhere.

        Silence is counted in looks, not read off a clock: where all ranks were suspended (Ctrl-Z), nobody was silent.
        """
        for rank in range(1, self.world) if self.rank == 0 else [0]:
            life = self._life(self._watched, rank)
            before, looks = self._lives[rank]
            self._lives[rank] = life, looks + 1 if life == before else 0
            if life == before and life not in ("", LEFT) and looks * POLL >= SILENCE:
                return Failure(rank, 1, f"rank {rank} does not answer any more ({SILENCE:.0f} s)")
        return None

    def _exit(self, failure: Failure) -> NoReturn:
        """Leave a process that cannot leave by itself: it waits for a rank that will never answer."""
        if self._speaks(failure) and failure.code <= 128:
            print(f"error: {failure}", file=sys.stderr, flush=True)
        with suppress(Exception):
            self.before_exit()
        self._end_children(GRACE)
        os._exit(failure.code)

    def _speaks(self, failure: Failure) -> bool:
        """Rank 0 tells of a failure elsewhere; rank 1 where rank 0 itself is gone."""
        return self.rank == (1 if failure.rank == 0 and failure.text == GONE else 0)

    # The end.

    @contextmanager
    def together(self) -> Iterator["Ranks"]:
        """Inside, an exception of one rank ends them all, each with the same exit code, and is shown once.

        Bad input is one line, on rank 0 wherever it was met; a fault shows the traceback of the rank that met it first.
        """
        try:
            yield self
        except BaseException as error:
            failure = self.failed(error)
            self._close()
            if failure.rank == self.rank and (self.rank == 0 or failure.code == 1):
                if is_consequence(error):  # it says that somebody did not answer, and not who
                    print(f"error: {failure.text}", file=sys.stderr, flush=True)
                raise
            if not self._speaks(failure) or failure.rank == self.rank:
                raise SystemExit(failure.code) from None
            if failure.code > 128:
                raise Interrupted(failure.code - 128) from None
            if failure.code == 2:
                raise InputError(str(failure)) from None
            print(f"error: {failure}", file=sys.stderr, flush=True)
            raise SystemExit(failure.code) from None
        else:
            with suppress(RuntimeError):
                self._store.compare_set("ready", "", "nothing to do")
            self._close()

    def _close(self) -> None:
        """Leave; rank 0 last, because the others' store goes with it."""
        self._done.set()
        self._thread.join(timeout=2 * GRACE)
        with suppress(RuntimeError):
            self._store.set(f"life/{self.rank}", LEFT)
            end = time.monotonic() + 3 * GRACE
            others = list(range(1, self.world)) if self._holds else []
            while others and time.monotonic() < end:
                others = [rank for rank in others if not self._has_left(rank)]
                time.sleep(0.05)
        self._end_children(3 * GRACE)

    def _has_left(self, rank: int) -> bool:
        if rank <= len(self.children) and self.children[rank - 1].poll() is not None:
            return True
        return self._life(self._store, rank) == LEFT

    def _end_children(self, grace: float) -> None:
        end = time.monotonic() + grace
        for child in self.children:
            try:
                child.wait(max(0.0, end - time.monotonic()))
            except TimeoutExpired:
                child.kill()
                child.wait()


def _position() -> str:
    """The innermost line of the main thread, as `file:line in function`."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else "its end"
