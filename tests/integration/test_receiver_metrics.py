"""/metrics, /readyz and /healthz, computed from a real PostgreSQL."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from db import migrate
from db.connection import Connection
from db.reports import metrics
from embedded.stack import Stack
from moorage import ids
from tests.integration import receiver_process as rp
from tests.support.exposition import read_series

SEED = """
INSERT INTO deliveries (id, provider, webhook_id, body_sha256, run_at)
SELECT gen_random_uuid(), 'replicate', 'msg' || n, '', moment() - interval '90 seconds' FROM generate_series(1, 3) n;
UPDATE deliveries SET lease_token = gen_random_uuid(), leased_by = 'a/1', leased_until = moment()
 WHERE webhook_id = 'msg1';
INSERT INTO jobs (id, owner, kind, state, deadline_at, run_at)
VALUES ('{job}', 'alice', 'image', 'open', moment() + interval '1 hour', moment() + interval '1 hour');
INSERT INTO jobs (id, owner, kind, state, deadline_at, settled_at)
VALUES (gen_random_uuid(), 'alice', 'image', 'cancelled', moment(), moment() - interval '1 hour'),
       (gen_random_uuid(), 'alice', 'image', 'cancelled', moment(), moment() - interval '25 hours');
INSERT INTO predictions (id, job_id, provider, external_id, state, deadline_at, run_at)
VALUES ('{prediction}', '{job}', 'replicate', 'x', 'running', moment(), moment() + interval '1 hour');
INSERT INTO outputs (id, job_id, prediction_id, idx, path, source_kind, state, run_at, expires_at)
VALUES (gen_random_uuid(), '{job}', '{prediction}', 0, 'output[0]', 'url', 'waiting', moment() - interval '30 seconds',
        moment() + interval '10 minutes');
INSERT INTO outputs (id, job_id, prediction_id, idx, path, source_kind, state, category, ended_at)
VALUES (gen_random_uuid(), '{job}', '{prediction}', 1, 'output[1]', 'url', 'dead', 'DOWNLOAD_FAILED', moment());
INSERT INTO dead_letters (id, subject, subject_id, provider, step, category, error, reason, retryable)
VALUES (gen_random_uuid(), 'output', gen_random_uuid(), 'replicate', 'keep', 'DOWNLOAD_FAILED', 'OutputGone', '', true);
INSERT INTO ticks (sweep, slot, started_at) VALUES ('dispatch', 1, moment() - interval '91 s'),
       ('dispatch', 2, moment() - interval '90 s'), ('reconcile', 9, moment() - interval '1 h');
INSERT INTO storage_use (bucket, owner, rank, computed_at) VALUES ('public', 'alice', 1, moment() - interval '2 h');
"""


def values(url: str, conn: Connection) -> dict[str, dict[tuple[str, ...], float]]:
    return {gauge.name: read_series(gauge) for gauge in metrics.collect_gauges(conn)}


def test_an_empty_database_has_no_overdue_counts(database_url: str, conn: Connection) -> None:
    """An alert on a new installation would train operators to ignore alerts."""
    found = values(database_url, conn)

    assert found["moorage_deliveries"] == {}
    assert found["moorage_soonest_expiry_seconds"] == {}
    assert set(found["moorage_oldest_due_seconds"].values()) == {0.0}


def test_live_rows_are_counted_by_state_and_provider(database_url: str, conn: Connection) -> None:
    """Leased rows are live, too, and completed work counts for a day."""
    conn.execute(SEED.format(job=ids.uuid7(), prediction=ids.uuid7()).encode())

    found = values(database_url, conn)

    assert found["moorage_deliveries"] == {("new", "replicate"): 3}
    assert found["moorage_jobs"] == {("open", "replicate"): 1}
    assert found["moorage_predictions"] == {("running", "replicate"): 1}
    assert found["moorage_outputs"] == {("waiting", "replicate"): 1}
    assert found["moorage_leases"] == {("deliveries",): 1, ("predictions",): 0, ("outputs",): 0, ("notifications",): 0}
    assert found["moorage_dead_letters_open"] == {("replicate", "keep", "DOWNLOAD_FAILED"): 1}
    assert found["moorage_jobs_ended_24h"] == {("cancelled",): 1}
    assert found["moorage_outputs_ended_24h"] == {("dead",): 1}
    assert set(found["moorage_sweep_last_tick_seconds"]) == {("dispatch",), ("reconcile",)}
    assert found["moorage_sweep_last_tick_seconds"][("dispatch",)] == pytest.approx(90, abs=20)
    assert found["moorage_sweep_unfinished_seconds"][("dispatch",)] == pytest.approx(91, abs=20)
    assert found["moorage_storage_counted_seconds"] == {("public",): pytest.approx(7200, abs=20)}
    assert found["moorage_soonest_expiry_seconds"][()] == pytest.approx(600, abs=20)
    due = found["moorage_oldest_due_seconds"]
    assert due[("deliveries",)] == pytest.approx(90, abs=20)
    assert due[("outputs",)] == pytest.approx(30, abs=20)
    assert (due[("jobs",)], due[("predictions",)]) == (0, 0)


@pytest.mark.parametrize(
    "sql",
    [sql for name, _, sql in metrics.GAUGE_QUERIES if name != "moorage_sweep_last_tick_seconds"],
    ids=[name for name, _, _ in metrics.GAUGE_QUERIES if name != "moorage_sweep_last_tick_seconds"],
)
def test_no_count_reads_a_whole_table(conn: Connection, sql: str) -> None:
    """A scrape every 15 seconds over all history would become the most expensive query."""
    conn.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")

    plan = "\n".join(str(row["QUERY PLAN"]) for row in conn.execute(f"EXPLAIN {sql}".encode()))

    for table in ("deliveries", "jobs", "outputs", "dead_letters"):
        assert f"Seq Scan on {table}" not in plan
        assert f"using {table}_pkey" not in plan


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return stack.postgres.create_database("receiver_metrics", template=template_database)


@pytest.fixture(scope="module")
def receiver(url: str) -> Iterator[rp.Receiver]:
    with rp.running(url) as process:
        yield process


def test_the_metrics_are_prometheus_text(receiver: rp.Receiver) -> None:
    """Parsed by the Prometheus client, with the names that alerts use."""
    receiver.post(b"{}", webhook_id="msg_1")
    receiver.post(b"{}", webhook_id="msg_1")
    receiver.call("POST", "/webhooks/replicate", b"{}")
    receiver.call("POST", "/webhooks/" + "x" * 500, b"{}")

    status, headers, body = receiver.scrape()

    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    samples = {(s.name, *sorted(s.labels.values())): s.value for f in families.values() for s in f.samples}
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert samples[("moorage_webhooks_recorded_total", "replicate")] == 1
    assert samples[("moorage_webhooks_known_total", "replicate")] == 1
    assert samples[("moorage_webhooks_refused_total", "bad_signature")] == 1
    assert samples[("moorage_webhooks_refused_total", "not_found")] == 1
    assert samples[("moorage_webhook_bytes_total",)] == 4
    assert samples[("moorage_webhook_seconds_count",)] == 4
    assert samples[("moorage_database_up",)] == 1
    assert samples[("moorage_deliveries", "new", "replicate")] == 1


def test_liveness_and_readiness_differ(receiver: rp.Receiver, stack: Stack) -> None:
    """A receiver whose database has no schema is alive, and must not get webhooks."""
    empty = stack.postgres.create_database("receiver_empty")

    with rp.running(empty) as unready:
        healthy = unready.call("GET", "/healthz")
        ready = unready.call("GET", "/readyz")
        posted = unready.post(b"{}", webhook_id="msg_1")

    assert receiver.call("GET", "/readyz")[0] == 200
    assert healthy[0] == 200
    assert ready[0] == 503
    assert b"moorage migrate" in ready[2]
    assert posted[0] == 503


def test_an_older_schema_is_not_ready(stack: Stack, template_database: str) -> None:
    """A receiver deployed before `moorage migrate` must not get webhooks."""
    older = stack.postgres.create_database("receiver_older", template=template_database)
    with psycopg.connect(older) as conn:
        conn.execute("DELETE FROM schema_migrations")

    with rp.running(older) as receiver:
        status, _, body = receiver.call("GET", "/readyz")

    assert status == 503
    assert f"needs {migrate.SCHEMA_VERSION}: run `moorage migrate`".encode() in body


def test_no_secret_is_exported(receiver: rp.Receiver, url: str) -> None:
    """Whoever reads metrics may not sign webhooks, nor read the database."""
    shown = receiver.scrape()[2].decode() + receiver.log()

    for secret in (rp.SECRET, rp.SECRET.removeprefix("whsec_"), str(urlsplit(url).password)):
        assert secret not in shown


def test_a_taken_metrics_address_stops_no_receiver(receiver: rp.Receiver, url: str) -> None:
    """Two receivers on one machine, with the default of both."""
    taken = f"127.0.0.1:{receiver.metrics_port}"
    with rp.running(url, MOORAGE_METRICS_ADDRESS=taken) as second:
        status, _, _ = second.post(b"{}", webhook_id="taken_1")

        assert status == 202
        assert "metrics.not_served" in second.log()
        assert "MOORAGE_METRICS_ADDRESS" in second.log()
    assert receiver.scrape()[0] == 200


def test_a_receiver_without_a_metrics_address_has_none(receiver: rp.Receiver, url: str) -> None:
    """And the port of the webhooks never has them."""
    with rp.running(url, MOORAGE_METRICS_ADDRESS="off") as silent:
        assert silent.call("GET", "/metrics")[0] == 404
        assert "metrics.not_served" not in silent.log()
        with pytest.raises(ConnectionRefusedError):
            silent.scrape()


def test_a_scrape_succeeds_when_a_query_fails(stack: Stack, template_database: str) -> None:
    """Partly migrated or locked: the counters of the process and all other gauges must still be exported."""
    broken = stack.postgres.create_database("receiver_broken", template=template_database)
    with psycopg.connect(broken) as conn:
        conn.execute("ALTER TABLE ticks RENAME TO ticks_away")

    with rp.running(broken) as receiver:
        failed = 'moorage_gauge_failed{{gauge="{}"}}'

        assert receiver.metric(failed.format("moorage_sweep_last_tick_seconds")) == 1
        assert receiver.metric('moorage_leases{table="outputs"}') == 0
        assert b'moorage_leases{table="outputs"}' in receiver.scrape()[2]
        assert receiver.metric(failed.format("moorage_leases")) == 0
        assert receiver.metric("moorage_database_up") == 1
