"""Two real transactions on two connections, let go one statement at a time in an order that chance decides."""

import random
import threading
import time
from collections.abc import Callable
from typing import Any

from db.connection import BEGIN, Connection, connect
from moorage.errors import LeaseLost, Refused

LONGEST_SECONDS = 60.0


class Racer:
    """A transaction in a thread of its own that asks before each statement."""

    def __init__(self, database_url: str, work: Callable[[Connection], object]) -> None:
        self.conn = connect(database_url, name="racer")
        self.pid = self.conn.info.backend_pid
        self.work = work
        self.error: BaseException | None = None
        self.asks, self.may = threading.Event(), threading.Event()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.conn.execute(BEGIN.format(lock_ms=10_000))
            self.work(_Asking(self.conn, self))  # type: ignore[arg-type]  # stands in for the methods that are used
            self.ask()
            self.conn.execute("COMMIT")
        except (LeaseLost, Refused):
            self.conn.execute("ROLLBACK")  # what the loser of a race does
        except BaseException as error:  # noqa: BLE001 (the border of a thread: told to the test)
            self.error = error
        finally:
            self.conn.close()
            self.over.set()

    def ask(self) -> None:
        """Wait until the next statement may run."""
        self.asks.set()
        if not self.may.wait(LONGEST_SECONDS):
            raise TimeoutError("nobody let this statement go")
        self.may.clear()


class _Asking:
    """A connection that asks before each statement."""

    after_commit: tuple[Callable[[], object], ...] = ()  # never called: what a process remembers changes no row

    def __init__(self, conn: Connection, racer: Racer) -> None:
        self._conn, self._racer = conn, racer

    def execute(self, *args: Any, **named: Any) -> Any:
        self._racer.ask()
        return self._conn.execute(*args, **named)

    def queue(self, *args: Any) -> Any:
        self._racer.ask()
        return self._conn.queue(*args)


def run(racers: list[Racer], chance: random.Random, eyes: Connection) -> None:
    """Run the transactions to their ends; a statement that waits for a lock lets the others go on."""
    for racer in racers:
        racer.thread.start()
    until = time.monotonic() + LONGEST_SECONDS
    while not all(racer.over.is_set() for racer in racers):
        assert time.monotonic() < until, "the transactions wait for each other"
        ready = [racer for racer in racers if _settled(racer, eyes, until) == "asks"]
        if ready:
            chosen = chance.choice(ready)
            chosen.asks.clear()
            chosen.may.set()
    for racer in racers:
        racer.thread.join(LONGEST_SECONDS)
        assert racer.error is None, racer.error


def _settled(racer: Racer, eyes: Connection, until: float) -> str:
    """Wait until a transaction asks, is over, or waits for a lock; returns which."""
    while time.monotonic() < until:
        if racer.over.is_set():
            return "over"
        if racer.asks.is_set():
            return "asks"
        row = eyes.execute(
            "SELECT wait_event_type = 'Lock' AS waits FROM pg_stat_activity WHERE pid = %s", [racer.pid]
        ).fetchone()
        if row and row["waits"]:
            return "waits"
    return "stuck"
