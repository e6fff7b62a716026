"""What the exploration sees of the world: rows, actors with their open transactions, objects. All of it hashable."""

from typing import Any, Final, NamedTuple

from moorage.transitions import TRANSITIONS

JOB, P0, P1, D0, D1, O0, O1, O2 = range(8)
NAMES: Final = ("job", "p0", "p1", "d0", "d1", "o0", "o1", "o2")
PREDICTIONS, DELIVERIES, OUTPUTS = (P0, P1), (D0, D1), (O0, O1, O2)
OUTPUTS_OF: Final = {P0: (O0, O1), P1: (O2,)}  # two files of the first prediction, one of the second
PREDICTION_OF: Final = {D0: P0, D1: P1, O0: P0, O1: P0, O2: P1}
LIVE: Final = {
    **dict.fromkeys(PREDICTIONS, ("running", "abandoned")),
    **dict.fromkeys(DELIVERIES, ("new",)),
    **dict.fromkeys(OUTPUTS, ("waiting", "discarding")),
}
SUBJECT: Final = {
    JOB: "job",
    **dict.fromkeys(PREDICTIONS, "prediction"),
    **dict.fromkeys(DELIVERIES, "delivery"),
    **dict.fromkeys(OUTPUTS, "output"),
}
ENDED_JOB: Final = ("succeeded", "partial", "failed")
WORKERS, SWEEP, PERSON, SERVER = (0, 1), 2, 3, 4  # SERVER ends a transaction whose client is gone


class Job(NamedTuple):
    """The job and, because they are only written under its lock, its render and variants."""

    state: str
    chosen: int = -1
    render: bool = False
    variants: tuple[int, ...] = ()
    partial: str = "keep"


class Row(NamedTuple):
    """A row with work columns. `token` 0: no lease. `over`: its lease may be released, its end has passed."""

    state: str = ""  # "": there is no such row
    token: int = 0
    over: bool = False
    attempt: int = 0
    crashes: int = 0
    key: int = 0  # the token that the recorded key names
    letter: bool = False  # an open dead letter is about it
    stopped: bool = False  # prediction: its provider is asked to stop it; output: ended as not needed. Both: another
    # prediction was chosen
    deferred: bool = False  # its job no longer waits for it
    reserve: bool = False  # deferred from the beginning: of a late success


Db = tuple[Any, ...]  # Job, then Rows


class Actor(NamedTuple):
    """Who does something: what, to which row, under which token, at which statement, with what written so far."""

    doing: str = ""
    slot: int = -1
    token: int = 0
    memo: Any = None  # what it remembers: a decision, a count that was taken too early
    at: int = 0  # the next statement of its open transaction
    txn: tuple[tuple[int, Any], ...] = ()  # rows it has locked, as it wrote them


IDLE: Final = Actor()


class State(NamedTuple):
    """One moment. What may still go wrong is counted, so that there are finitely many."""

    db: Db
    actors: tuple[Actor, ...] = (IDLE,) * 5
    objects: frozenset[tuple[int, int]] = frozenset()  # (output, token in the key)
    next_token: int = 1
    faults: int = 0  # processes that may die or stall, COMMITs whose answer may be lost
    failures: int = 0  # downloads that may fail
    replays: int = 0
    stops: int = 0  # work that may be handed back by a stopping worker


class Blocked(Exception):
    """Another transaction holds a lock that the statement waits for."""


class Lost(Exception):
    """No row came back: the actor rolls back and stops (LeaseLost), or is refused."""


class Violation(Exception):
    """A law is broken; the message says which."""


class View:
    """The rows as one transaction sees them: what is committed, and over it what it wrote itself."""

    def __init__(self, state: State, me: int, mine: tuple[tuple[int, Any], ...]) -> None:
        self._db = state.db
        self._mine = dict(mine)
        self._theirs = {slot for i, a in enumerate(state.actors) if i != me for slot, _ in a.txn}

    def get(self, slot: int) -> Any:
        """Return a row of a new snapshot: every SELECT of READ COMMITTED takes one."""
        return self._mine.get(slot, self._db[slot])

    def lock(self, slot: int) -> Any:
        """Lock a row and return it as it is then (`FOR UPDATE`)."""
        if slot in self._theirs:
            raise Blocked
        return self._mine.setdefault(slot, self._db[slot])

    def put(self, slot: int, row: Any) -> None:
        """Write a row; its state may only take an edge that the lifecycle has."""
        before = self.lock(slot).state
        if before != row.state:
            self.took(slot, before, row.state)
        self._mine[slot] = row

    def took(self, slot: int, before: str, after: str) -> None:
        """Note an edge as its event does. Raises Violation when the lifecycle has no such edge."""
        if (before or None, after) not in TRANSITIONS[SUBJECT[slot]]:
            raise Violation(f"rule 7: {NAMES[slot]} went {before} -> {after}, which is no edge of the lifecycle")

    @property
    def written(self) -> tuple[tuple[int, Any], ...]:
        """Return what is locked and written so far."""
        return tuple(sorted(self._mine.items()))


def replaced(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    """Return a tuple with one place changed."""
    return (*values[:index], value, *values[index + 1 :])


def committed(db: Db, written: tuple[tuple[int, Any], ...]) -> Db:
    """Return the rows after a COMMIT."""
    rows = list(db)
    for slot, row in written:
        is_held = slot != JOB and row.token and row.token == rows[slot].token
        rows[slot] = row._replace(over=rows[slot].over) if is_held else row  # time passes in every snapshot
    return tuple(rows)
