"""Celery's request of a step, in the worker's main process: its events state what became of the rows."""

from typing import Any, Final

from celery.worker.request import Request

from worker import outcomes
from worker.outcomes import RowFailed, RowOutcome

_EVENTS: Final = {"done": "task-succeeded", "retry": "task-retried", "dead": "task-failed"}


class StepRequest(Request):
    """
    Sends one event for each claimed row: a batch, or an output more urgent than the named one, is shown as such.

    A task whose process died, or whose error is not recorded, is shown as RETRY: its row is tried again.
    """

    _eventer: Any  # untyped in Celery
    _error: BaseException | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.request_dict["is_watched"] = self._is_watched()  # only then the rows are read again

    def _is_watched(self) -> bool:
        eventer = self._eventer
        return bool(eventer and eventer.enabled and (not eventer.groups or "task" in eventer.groups))

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        error = exc_info.exception
        while getattr(error, "exc", None) is not None:  # of Retry, and of what carries an error between processes
            error = error.exc
        self._error = error
        return super().on_failure(exc_info, *args, **kwargs)

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 (Celery's name)
        if type not in _EVENTS.values() or not self._is_watched():
            super().send_event(type, **fields)
            return
        fields |= {"name": self.name, "traceback": None}  # Flower has no name if it did not see the task received
        if isinstance(self._error, RowFailed):
            known = self._error.outcomes
        else:
            known = outcomes.parse_report(str(fields.get("result")))
            if type == "task-failed":
                type = "task-retried"  # noqa: A001
                fields["exception"] += "; the row is tried again"
        if known:
            fields |= _build_fields(known[0])
        super().send_event(type, **fields)
        for other in known[1:]:
            self._eventer.send(_EVENTS[other.state], uuid=other.task_id, name=self.name, **_build_fields(other))


def _build_fields(outcome: RowOutcome) -> dict[str, Any]:
    return {"args": outcome.row_id, "kwargs": "{}", "result" if outcome.state == "done" else "exception": outcome.text}
