"""Beat's first ticks."""

from celery import Celery

from moorage.settings import Settings
from worker import schedule
from worker.beat import Scheduler

ANY = Settings(_env_file=None, database_url="postgresql://u:p@127.0.0.1/d", broker_url="redis://127.0.0.1/0")


def test_periodic_sweeps_are_due_when_beat_starts() -> None:
    """With a period to wait first, `moorage status` called `drain` and `counts` late right after a restart."""
    app = Celery("tests")
    app.conf.beat_schedule = schedule.build_beat_schedule(ANY)

    due = {entry.args[0] for entry in Scheduler(app).schedule.values() if entry.args and entry.is_due().is_due}

    assert due == {*schedule.sweep_periods(ANY)}
