"""What workers count of their work: added up in PostgreSQL, and shown by /metrics."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from db import work_totals
from db.connection import CommitUncertain, Database, connect
from db.reports import metrics as metrics_report
from db.reports.status import read_overview
from embedded.stack import Stack
from moorage import metrics
from moorage import settings as settings_module
from tasks.sweeps import retention
from tests.integration.core import LEASED_BY, World, database_of, prediction, world
from tests.support.exposition import read_series, render_metrics
from worker import boot, metrics_flush, publish, step_runner


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "metrics_flush")


@pytest.fixture
def at(stack: Stack, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Give a world whose totals are zero: what other tests of this process counted is in none of them."""
    with world(stack, url) as made:
        monkeypatch.setattr(boot, "get_deps", lambda: made.deps)
        monkeypatch.setattr(publish, "publish_wakes", lambda _: None)
        monkeypatch.setattr(settings_module, "get_settings", lambda: made.deps.settings)
        monkeypatch.setattr(metrics, "_hosts", set())
        metrics_flush.flush()
        made.conn.execute("TRUNCATE work_totals")
        yield made


def totals(at: World) -> dict[str, float]:
    """Return the totals as /metrics shows them, without buckets and sums of seconds, by name and label values."""
    text = render_metrics(work_totals.read_totals(at.conn))
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples if s.value]
    return {
        " ".join((s.name.removeprefix("moorage_"), *sorted(s.labels.values()))).replace("  ", " "): s.value
        for s in samples
        if s.name.startswith(("moorage_attempts", "moorage_phase", "moorage_download", "moorage_stored"))
        and not s.name.endswith(("_bucket", "_sum"))
    }


def test_each_part_of_the_work_is_counted(at: World) -> None:
    """Attempts by category, the phases of a file, downloads by host and status, bytes."""
    files = [at.source.picture(), at.source.broken(), at.source.broken(503)]
    ids = at.outputs(at.keeping(files).job_id)
    for output_id in ids:
        at.conn.execute("UPDATE outputs SET run_at = moment() + interval '1 day' WHERE state = 'waiting'")
        at.conn.execute("UPDATE outputs SET run_at = moment() WHERE id = %s AND state = 'waiting'", (output_id,))
        step_runner.run_step("keep", output_id, LEASED_BY)

    metrics_flush.flush()

    row = at.row("outputs", ids[0])
    assert totals(at) == {
        **{f"phase_seconds_count {p}": 1.0 for p in ("download", "validate", "thumbnail", "store", "record")},
        "phase_seconds_count claim": 4.0,
        "attempts_total done ingest": 1.0,
        "attempts_total done keep": 1.0,
        "attempts_total DOWNLOAD_FAILED dead keep": 1.0,
        "attempts_total DOWNLOAD_FAILED keep retry": 1.0,
        "downloads_total 127.0.0.1 2xx": 1.0,
        "downloads_total 127.0.0.1 4xx": 1.0,
        "downloads_total 127.0.0.1 5xx": 1.0,
        "download_bytes_total 127.0.0.1": float(row["bytes"]),
        "stored_bytes_total": float(row["bytes"] + row["thumb_bytes"]),
    }


def test_a_failed_poll_is_a_retry(at: World) -> None:
    """It ends nothing and costs no attempt, but an API that fails must be seen in Flower, metrics and the verdict."""
    made = [at.registered(name).prediction_id for name in ("p1", "p2")]
    shown = []
    for answer in (503, prediction("p1", "processing")):
        for name, one in zip(("p1", "p2"), made, strict=True):
            at.source.predictions[name] = answer if answer == 503 else {**answer, "id": name}
            at.conn.execute("UPDATE predictions SET run_at = moment() WHERE id = %s", (one,))
            shown += step_runner.run_step("poll", one, LEASED_BY)
        failing = at.deps.database.run(lambda conn: read_overview(conn, [])["failing"])
        assert [row["value"] for row in failing] == ([2] if answer == 503 else [])
        assert all("503" in row["example"] for row in failing)

    metrics_flush.flush()

    assert [outcome.state for outcome in shown] == ["retry", "retry", "done", "done"]
    assert "503" in shown[0].text
    counted = totals(at)
    assert (counted["attempts_total PROVIDER_FAILED poll retry"], counted["attempts_total done poll"]) == (2.0, 2.0)


def test_totals_only_grow_by_what_is_new(at: World) -> None:
    """Two processes that count, or one that flushes twice, give the sum; a bucket without a count is there, too."""
    metrics.ATTEMPTS.labels("poll", "done", "").inc(2)
    metrics_flush.flush()
    metrics_flush.flush()
    at.deps.database.run(lambda conn: work_totals.add(conn, [("moorage_attempts_total", {"step": "poll"}, 1.0)]))
    at.deps.database.run(lambda conn: work_totals.add(conn, [("moorage_attempts_total", {"step": "poll"}, 2.0)]))
    metrics.ATTEMPTS.labels("poll", "done", "").inc()
    metrics.PHASE_SECONDS.labels("of a test").observe(0.2)
    metrics_flush.flush()

    assert totals(at) == {
        "attempts_total done poll": 3.0,
        "attempts_total poll": 3.0,
        "phase_seconds_count of a test": 1.0,
    }
    buckets = (
        "SELECT count(*) FROM work_totals WHERE name = 'moorage_phase_seconds_bucket' AND labels LIKE '%%of a test%%'"
    )
    assert at.one(buckets) == 17


def test_counts_wait_for_postgresql(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage delays them."""
    metrics.ATTEMPTS.labels("poll", "done", "").inc()
    down = at.changed(database_url=SecretStr("postgresql://nobody@127.0.0.1:1/none")).deps.settings
    with monkeypatch.context() as patch:
        patch.setattr(settings_module, "get_settings", lambda: down)
        metrics_flush.flush()
    assert totals(at) == {}

    metrics_flush.flush()

    assert totals(at) == {"attempts_total done poll": 1.0}


def test_a_machine_without_processes_left_ends_no_task(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error replaced the task's result, and no later task added what it counted."""
    started: list[threading.Thread] = []
    monkeypatch.setattr(metrics_flush, "_is_scheduled", False)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        metrics_flush.schedule_flush()
        patch.setattr(threading.Thread, "start", lambda thread: started.append(thread))
        metrics_flush.schedule_flush()

    assert [thread.name for thread in started] == ["work-metrics"]


def refuse(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_hosts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """`moorage keep` may download from any: each would be a series for ever."""
    monkeypatch.setattr(metrics, "_hosts", set())

    names = [metrics.name_host(f"h{n}") for n in range(metrics.MAX_HOSTS + 2)]

    assert names[-3:] == [f"h{metrics.MAX_HOSTS - 1}", "(other)", "(other)"]
    assert metrics.name_host("h0") == "h0"


def test_the_hosts_of_all_processes_are_bounded(at: World) -> None:
    """A pool child is replaced every 500 tasks, and names hosts of its own."""
    name, last = "moorage_downloads_total", metrics.MAX_HOSTS + 2
    work_totals.add(at.conn, [(name, {"host": f"h{n}", "status": "2xx"}, 1.0) for n in range(last)])
    work_totals.add(at.conn, [(name, {"host": host, "status": "2xx"}, 5.0) for host in ("h0", "new", "newer")])

    found = {labels["host"]: value for _, labels, value in work_totals.read_totals(at.conn)}

    assert len(found) == metrics.MAX_HOSTS + 1
    assert (found["h0"], found["(other)"]) == (6.0, 12.0)


def test_a_gauge_that_fails_does_not_remove_the_others(at: World, url: str) -> None:
    """It is named."""
    with connect(url) as conn:
        conn.execute("ALTER TABLE storage_use RENAME TO storage_use_away")
        gauges = {gauge.name: read_series(gauge) for gauge in metrics_report.collect_gauges(conn)}
        conn.execute("ALTER TABLE storage_use_away RENAME TO storage_use")

    storage = {f"moorage_storage_{name}" for name in ("bytes", "objects", "counted_seconds")}
    names = {name for name, *_ in metrics_report.GAUGE_QUERIES}
    work = {family.name for family in metrics.WORK.collect()}
    assert gauges["moorage_gauge_failed"] == {(name,): float(name in storage) for name in (*names, "work_totals")}
    assert set(gauges) == {"moorage_gauge_failed", *(names - storage), *work}


def test_totals_that_cannot_be_read_cost_no_gauge_and_no_time(at: World, url: str) -> None:
    """Prometheus waits for ten seconds: after them all receivers seem to be down."""
    with connect(url) as holder, connect(url) as conn, holder.transaction():
        holder.execute("LOCK TABLE work_totals")
        started = time.monotonic()
        gauges = {gauge.name: read_series(gauge) for gauge in metrics_report.collect_gauges(conn)}

    failed = {name for (name,), value in gauges["moorage_gauge_failed"].items() if value}
    assert failed == {"work_totals"}
    assert "moorage_deliveries" in gauges
    assert time.monotonic() - started < metrics_report.SCRAPE_SECONDS


def test_the_totals_of_an_unused_host_are_forgotten(at: World) -> None:
    """`moorage keep` downloads from any host: the first 30 kept their names for a month, or for ever."""
    name, old, new = "moorage_downloads_total", {"host": "old.example"}, {"host": "new.example"}
    other = ("moorage_attempts_total", {"step": "poll"}, 1.0)
    work_totals.add(at.conn, [(name, old, 1.0), (name, new, 1.0), other])
    at.conn.execute("UPDATE work_totals SET changed_at = moment() - interval '25 hours'")
    work_totals.add(at.conn, [(name, new, 1.0)])

    retention.count_ended_rows(at.deps)

    assert work_totals.read_totals(at.conn) == [other, (name, new, 2.0)]
    at.conn.execute("UPDATE work_totals SET changed_at = moment() - interval '31 days'")
    retention.count_ended_rows(at.deps)
    assert work_totals.read_totals(at.conn) == []


def test_counts_whose_commit_is_uncertain_are_not_added_again(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the totals most likely; a total that is too high never falls again."""
    run = Database.run

    def lose_the_answer(database: Database, work: Any) -> None:
        run(database, work)
        raise CommitUncertain("PostgreSQL failed during COMMIT: connection lost")

    metrics.STORED_BYTES.inc(5)
    with monkeypatch.context() as lost:
        lost.setattr(Database, "run", lose_the_answer)
        metrics_flush.flush()
    metrics_flush.flush()

    assert at.one("SELECT value FROM work_totals WHERE name = 'moorage_stored_bytes_total'") == 5
