"""Beat's schedule. A sweep claims a time slot in PostgreSQL, so that any number of beats may run."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from celery.schedules import crontab

from moorage.errors import ConfigError
from moorage.settings import Settings
from worker import queues

SWEEPS: Final = ("dispatch", "reconcile", "drain", "discard", "counts", "orphans", "retention", "usage")
SLOT_SECONDS: Final = 60.0  # of a sweep with a cron expression, and of counts
OFF: Final = "off"
_CRON_EXPIRES_SECONDS: Final = 3600.0
# Celery compares the clocks of beat and worker; doctor lets them differ by 5 s. A tick too many costs a round trip.
_MIN_EXPIRES_SECONDS: Final = 10.0
_STAGGER_MINUTES: Final = 20
_USAGE_CRON: Final = "7 * * * *"


def sweep_periods(settings: Settings) -> Mapping[str, float]:
    return {
        "dispatch": settings.constants.dispatch_seconds,
        "reconcile": settings.constants.reconcile_seconds,
        "drain": settings.constants.drain_seconds,
        "discard": settings.constants.discard_seconds,
        "counts": SLOT_SECONDS,
    }


def sweep_crontabs(settings: Settings) -> Mapping[str, crontab]:
    """
    Return when each maintenance sweep runs, in UTC; empty if they are off. Raises ConfigError.

    Retention runs 20 minutes after orphans within the hour: each may occupy a quick worker for minutes.
    """
    line = settings.maintenance_cron.strip()
    if line.lower() == OFF:
        return {}
    try:
        first: Any = crontab.from_string(line)
    except ValueError as error:
        example = 'write five fields, for example "17 3 * * *" for 03:17 UTC each day, or "off"'
        raise ConfigError(f"MOORAGE_MAINTENANCE_CRON={line!r} is not a cron line ({error}): {example}") from error
    minutes = ",".join(str((minute + _STAGGER_MINUTES) % 60) for minute in sorted(first.minute))
    second = crontab.from_string(" ".join([minutes, *line.split()[1:]]))
    return {"orphans": first, "retention": second, "usage": crontab.from_string(_USAGE_CRON)}


def slot_seconds(settings: Settings, sweep: str) -> float:
    return sweep_periods(settings).get(sweep, SLOT_SECONDS)


def next_run(line: crontab, last: datetime) -> datetime:
    """Return the first time of a cron expression after the last run."""
    start, remaining, _ = line.remaining_delta(last)
    run_at: datetime = start + remaining
    return run_at


def build_beat_schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """
    Return beat's schedule. Ticks expire, so that they do not accumulate while no worker runs.

    Reconcile has none of its own: it is run with dispatch.
    """
    periods = {name: seconds for name, seconds in sweep_periods(settings).items() if name != "reconcile"}
    periodic = {name: _entry(name, seconds, max(seconds, _MIN_EXPIRES_SECONDS)) for name, seconds in periods.items()}
    nightly = {name: _entry(name, line, _CRON_EXPIRES_SECONDS) for name, line in sweep_crontabs(settings).items()}
    return {f"sweep-{name}": entry for name, entry in {**periodic, **nightly}.items()}


def _entry(name: str, schedule: float | crontab, expires: float) -> dict[str, Any]:
    queue = "sweeps" if name in queues.PROMPT_SWEEPS else "quick"
    options = {"queue": queue, "expires": expires, "confirm_timeout": queues.CONFIRM_SECONDS}
    return {"task": queues.SWEEP_TASK, "schedule": schedule, "args": [name], "options": options}
