"""Where the searches start, small enough to be searched to the end."""

from typing import Any, Final

from tests.exploration.moves import Scenario
from tests.exploration.state import P1, Job, Row, State

_GONE: Final = Row("")
_DONE: Final = Row("applied")


def keeping(partial: str = "keep", **budget: Any) -> State:
    """Two outputs of the chosen prediction wait; the other prediction has failed."""
    job = Job("keeping", 1, partial=partial)
    rows = (Row("succeeded"), Row("failed"), _DONE, _DONE, Row("waiting"), Row("waiting"), _GONE)
    return State((job, *rows), **budget)


def failing(partial: str = "keep", **budget: Any) -> State:
    """Two outputs of the chosen prediction have failed once: the next failure defers one. The other one runs."""
    job = Job("keeping", 1, partial=partial)
    once = Row("waiting", attempt=1)
    rows = (Row("succeeded"), Row("running"), _DONE, Row("new"), once, once, _GONE)
    return State((job, *rows), **budget)


def awaiting(**budget: Any) -> State:
    """Two predictions run; the first's webhook has come, and the second's."""
    rows = (Row("running"), Row("running"), Row("new"), Row("new"), _GONE, _GONE, _GONE)
    return State((Job("open"), *rows), **budget)


def lost(**budget: Any) -> State:
    """The first prediction's files wait, the second was lost, and its webhook is late."""
    rows = (Row("succeeded"), Row("lost", letter=True), _DONE, Row("new"), Row("waiting"), Row("waiting"), _GONE)
    return State((Job("keeping", 1), *rows), **budget)


# In the first two each statement of a transaction is a step of its own; in the others, which begin further back or let
# more go wrong, a transaction is one step.
STATEMENTS: Final = Scenario(keeping(faults=2, failures=1, replays=1), fine=True)
WEBHOOKS: Final = Scenario(awaiting(faults=1, failures=2, replays=1), fine=True, polled=(), failures=("gone",))
WHOLE: Final = Scenario(awaiting(faults=1, failures=2, replays=1), polled=(P1,), failures=("gone",))
DISCARD: Final = Scenario(keeping("discard", faults=2, failures=1), failures=("gone", "interrupted"))
STOPS: Final = Scenario(keeping(faults=1, failures=1, stops=1, replays=1), failures=("storage away",))
LATE: Final = Scenario(lost(faults=1, failures=2, replays=2), silent=(P1,), failures=("gone",))
DEFERRED: Final = Scenario(failing(faults=1, failures=2), polled=(), failures=("interrupted", "gone"))
DEFERRED_DISCARD: Final = Scenario(
    failing("discard", faults=1, failures=2), polled=(), failures=("interrupted", "gone")
)
CANCELLED: Final = Scenario(awaiting(faults=1, failures=2), polled=(P1,), silent=(P1,), failures=("gone",))
DISORDER: Final = Scenario(awaiting(faults=1, failures=1), late="out of order", failures=("gone",))
# What takes minutes on a busy machine, with one thing less that may go wrong.
SHORT: Final = {
    "statements": Scenario(keeping(faults=1, failures=1, replays=1), fine=True),
    "webhooks": Scenario(awaiting(faults=1, failures=1), fine=True, polled=(), failures=("gone",)),
    "whole": Scenario(awaiting(faults=1, failures=1), polled=(P1,), failures=("gone",)),
    "late": Scenario(lost(faults=1, failures=1, replays=1), silent=(P1,), failures=("gone",)),
    "disorder": Scenario(awaiting(faults=1), late="out of order"),
    "cancelled": Scenario(awaiting(faults=1, failures=1), polled=(P1,), silent=(P1,), failures=("gone",)),
    "discard": Scenario(keeping("discard", faults=1, failures=1), failures=("gone", "interrupted")),
    "deferred": Scenario(failing(failures=2), polled=(), failures=("interrupted",)),
    "deferred discard": Scenario(failing("discard", failures=2), polled=(), failures=("interrupted",)),
}
ALL: Final = {
    "statements": STATEMENTS,
    "webhooks": WEBHOOKS,
    "whole": WHOLE,
    "discard": DISCARD,
    "stops": STOPS,
    "late": LATE,
    "disorder": DISORDER,
    "cancelled": CANCELLED,
    "deferred": DEFERRED,
    "deferred discard": DEFERRED_DISCARD,
}
