"""Sweeps with a cron line: when they run, and what a wrong line is told."""

from datetime import UTC, datetime
from typing import Any

import pytest

from moorage.errors import ConfigError
from moorage.settings import Settings
from tasks.sweeps import retention
from worker import schedule


def settings(**given: Any) -> Settings:
    return Settings(
        _env_file=None,
        database_url="postgresql://u:p@127.0.0.1/d",
        broker_url="redis://127.0.0.1/0",
        **given,
    )


def test_every_sweep_is_ticked_once() -> None:
    """A sweep that beat does not know never runs, and nobody notices for weeks."""
    entries = schedule.entries(settings())

    assert sorted(entry["args"][0] for entry in entries.values()) == [
        "discard", "dispatch", "drain", "orphans", "reconcile", "retention", "usage",
    ]  # fmt: skip
    assert schedule.slot_seconds(settings(), "orphans") == 60.0
    assert schedule.slot_seconds(settings(), "drain") == 30.0


def test_a_cron_line_is_read_in_utc() -> None:
    """A night in the wrong time zone is the busiest hour of the day."""
    line = schedule.crons(settings(orphans_cron="17 3 * * *"))["orphans"]

    assert schedule.next_run(line, datetime(2026, 1, 1, 5, tzinfo=UTC)) == datetime(2026, 1, 2, 3, 17, tzinfo=UTC)


@pytest.mark.parametrize("line", ["nightly", "99 3 * * *", "* * * *", "0 0 * * * *"])
def test_a_wrong_cron_line_refuses_the_start(line: str) -> None:
    """The message must name the setting as it stands in the environment, and what to write."""
    with pytest.raises(ConfigError, match=r"MOORAGE_RETENTION_CRON=.*is not a cron line.*17 3 \* \* \*"):
        schedule.entries(settings(retention_cron=line))


def test_off_switches_a_sweep_off() -> None:
    """Who cleans up with rules of the bucket itself must be able to."""
    crons = schedule.crons(settings(orphans_cron="OFF"))

    assert set(crons) == {"retention", "usage"}


def test_zero_days_keeps_for_ever() -> None:
    """Renders and rows go only when asked to; 0 must not mean at once."""
    kept = retention.kept_seconds(settings(keep_failed_days=0, keep_bodies_days=0.5))

    assert kept == {"bodies": 43200.0}
