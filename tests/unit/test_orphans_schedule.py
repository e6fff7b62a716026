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
    entries = schedule.build_beat_schedule(settings())

    assert sorted(entry["args"][0] for entry in entries.values()) == [
        "counts", "discard", "dispatch", "drain", "orphans", "retention", "usage",
    ]  # fmt: skip
    assert {entry["args"][0] for entry in entries.values()} | {"reconcile"} == set(schedule.SWEEPS)  # with dispatch
    assert schedule.slot_seconds(settings(), "orphans") == 60.0
    assert schedule.slot_seconds(settings(), "drain") == 30.0


def test_a_cron_line_is_read_in_utc() -> None:
    """A night in the wrong time zone is the busiest hour of the day."""
    line = schedule.sweep_crontabs(settings(maintenance_cron="17 3 * * *"))["orphans"]

    assert schedule.next_run(line, datetime(2026, 1, 1, 5, tzinfo=UTC)) == datetime(2026, 1, 2, 3, 17, tzinfo=UTC)


@pytest.mark.parametrize(
    ("line", "orphans", "retention"), [("17 3 * * *", {17}, {37}), ("5,50 * * * *", {5, 50}, {25, 10})]
)
def test_orphans_and_retention_do_not_start_together(line: str, orphans: set[int], retention: set[int]) -> None:
    """Each may run for four minutes, and a deployment has two quick workers by default."""
    crons = schedule.sweep_crontabs(settings(maintenance_cron=line))

    assert (crons["orphans"].minute, crons["retention"].minute) == (orphans, retention)
    assert crons["orphans"].hour == crons["retention"].hour


@pytest.mark.parametrize("line", ["nightly", "99 3 * * *", "* * * *", "0 0 * * * *"])
def test_a_wrong_cron_line_refuses_the_start(line: str) -> None:
    """The message must name the setting as it stands in the environment, and what to write."""
    with pytest.raises(ConfigError, match=r"MOORAGE_MAINTENANCE_CRON=.*is not a cron line.*17 3 \* \* \*"):
        schedule.build_beat_schedule(settings(maintenance_cron=line))


def test_off_disables_the_maintenance_sweeps() -> None:
    """An operator who deletes by rules of the bucket must be able to."""
    assert schedule.sweep_crontabs(settings(maintenance_cron="OFF")) == {}
    assert set(schedule.sweep_crontabs(settings())) == {"orphans", "retention", "usage"}


def test_zero_days_keeps_for_ever() -> None:
    """Renders go only when asked to; 0 must not mean at once."""
    never = settings(retention_days={"bodies": 0.0, "rows": 0.0, "dead_letters": 0.0})
    assert retention.retention_seconds(never) == {"quarantine": 604_800.0}
    kept = retention.retention_seconds(settings(retention_days={"bodies": 0.5, "rows": 0.0, "dead_letters": 0.0}))

    days = {"bodies": 43200.0, "failed_bodies": 43200.0, "failed_sources": 43200.0}
    assert kept == {"quarantine": 604_800.0, **days}


def test_ended_rows_go_after_90_days_and_never_before_a_webhook_is_repeated() -> None:
    """The id of a webhook is what recognizes a repeated one: providers repeat for up to three days."""
    kinds = ("deliveries", "dead_letters", "notifications", "jobs")

    by_default, hasty = (
        retention.retention_seconds(made) for made in (settings(), settings(retention_days={"rows": 0.1}))
    )

    assert [by_default[kind] for kind in kinds] == [90 * 86400.0] * 4
    assert [hasty[kind] for kind in kinds] == [7 * 86400.0] * 4
    assert "renders" not in by_default
