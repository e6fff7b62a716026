"""Alerts and panels against a real receiver's /metrics: the names are there, and each alert fires when it should."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from db.connection import Connection, connect
from embedded.stack import Stack
from tests.integration import receiver_process as rp
from tests.support import promql
from tests.support.promql import Sample

ROOT = Path(__file__).resolve().parents[2]
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "deploy/alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
PANELS = json.loads((ROOT / "deploy/grafana/moorage.json").read_text(encoding="utf-8"))["panels"]
EXPRESSIONS = [rule["expr"] for rule in RULES] + [t["expr"] for panel in PANELS for t in panel["targets"]]
EMPTY = "TRUNCATE deliveries, jobs, predictions, outputs, dead_letters, ticks, pauses, storage_use, events,"
EMPTY += " work_totals, webhook_refusals, notifications, breakers CASCADE"

# A house in which all is well: ticks, a webhook a minute for an hour, 40 jobs with one failure, one fallback, one poll.
WELL = """
INSERT INTO ticks (sweep, slot, finished_at)
SELECT sweep, 1, moment() FROM unnest('{dispatch,reconcile,drain,discard,usage}'::text[]) sweep;
INSERT INTO deliveries (id, provider, webhook_id, body_sha256, state, run_at, ended_at, received_at)
SELECT gen_random_uuid(), 'replicate', 'w' || n, '', 'applied', NULL, moment(), moment() - n * interval '1 min'
  FROM generate_series(1, 60) n;
INSERT INTO jobs (id, owner, kind, state, deadline_at, settled_at, category)
SELECT md5('job' || n)::uuid, 'ann', 'image', CASE WHEN n = 1 THEN 'failed' ELSE 'succeeded' END, moment(), moment(),
       CASE WHEN n = 1 THEN 'PROVIDER_FAILED' END
  FROM generate_series(1, 40) n;
INSERT INTO predictions (id, job_id, seq, provider, external_id, state, ended_by, deadline_at, ended_at)
SELECT md5('prediction' || n)::uuid, md5('job' || n)::uuid, CASE WHEN n = 2 THEN 1 ELSE 0 END, 'replicate', 'p' || n,
       CASE WHEN n = 1 THEN 'failed' ELSE 'succeeded' END, CASE WHEN n = 3 THEN 'poll' ELSE 'webhook' END, moment(),
       moment()
  FROM generate_series(1, 40) n;
UPDATE jobs j SET chosen_id = p.id FROM predictions p WHERE p.job_id = j.id AND j.state = 'succeeded';
INSERT INTO jobs (id, owner, kind, state, deadline_at, run_at)
VALUES (md5('live')::uuid, 'ann', 'image', 'open', moment() + interval '1 h', moment() + interval '1 h');
INSERT INTO predictions (id, job_id, provider, external_id, state, deadline_at, run_at)
VALUES (md5('live')::uuid, md5('live')::uuid, 'replicate', 'live', 'running', moment() + interval '1 h',
        moment() + interval '1 h');
INSERT INTO outputs (id, job_id, prediction_id, idx, path, source_kind, state, run_at, expires_at)
VALUES (md5('live')::uuid, md5('live')::uuid, md5('live')::uuid, 0, 'output', 'url', 'waiting',
        moment() + interval '1 min', moment() + interval '1 h');
INSERT INTO outputs (id, job_id, prediction_id, idx, path, source_kind, state, ended_at)
VALUES (md5('over')::uuid, md5('live')::uuid, md5('live')::uuid, 1, 'output[1]', 'url', 'discarded', moment());
"""

LETTER = """
INSERT INTO dead_letters (id, subject, subject_id, provider, step, category, error, reason, retryable)
VALUES (gen_random_uuid(), 'output', gen_random_uuid(), 'replicate', 'keep', 'DOWNLOAD_FAILED', 'OutputGone', '', true)
"""
STORAGE_FAILED = """
INSERT INTO events (subject, subject_id, from_state, to_state, actor, kind, at)
VALUES ('output', md5('live')::uuid, 'waiting', 'waiting', 'a/1', 'storage_failed', moment() - interval '2 min')
"""
KEPT = """
INSERT INTO events (subject, subject_id, from_state, to_state, actor)
VALUES ('output', md5('over')::uuid, 'waiting', 'kept', 'a/1')
"""
ATTEMPTS = """
INSERT INTO work_totals (name, labels, value)
SELECT 'moorage_attempts_total',
       json_build_object('step', 'keep', 'outcome', outcome, 'category', category)::text, value
  FROM (VALUES ('done', '', {done}), ('retry', 'DOWNLOAD_FAILED', {retry}), ('retry', 'STORAGE_FAILED', {retry})) v
       (outcome, category, value)
"""
OTHER_TOTALS = """
INSERT INTO work_totals (name, labels, value)
VALUES ('moorage_phase_seconds_bucket', '{"phase": "claim", "le": "1.0"}', 1),
       ('moorage_downloads_total', '{"host": "a", "status": "2xx"}', 1),
       ('moorage_download_bytes_total', '{"host": "a"}', 1), ('moorage_stored_bytes_total', '{}', 1)
"""
STORED = "INSERT INTO storage_use (bucket, owner, objects, bytes, rank) VALUES ('public', 'ann', 1, {}, 1)"
REFUSED = "INSERT INTO webhook_refusals (provider, value, reason) VALUES ('replicate', {}, 'wrong signature')"
REFUSED += " ON CONFLICT (provider) DO UPDATE SET value = excluded.value, last_at = excluded.last_at"
# A file, a submission and a poll that have been due for six minutes, and when their breakers had a probe last.
BREAKERS = """
INSERT INTO breakers (target, opened_at, probe_at, reason)
VALUES ('host b.example', moment() - interval '7 min', moment() - interval '{host}', '503'),
       ('api replicate', moment() - interval '7 min', moment() - interval '{api}', '503');
UPDATE predictions SET run_at = moment() - interval '6 min' WHERE state = 'running';
UPDATE outputs SET run_at = moment() - interval '6 min', source = 'https://b.example/a.png' WHERE state = 'waiting';
INSERT INTO predictions (id, job_id, seq, entry, provider, state, deadline_at, run_at)
VALUES (md5('planned')::uuid, md5('live')::uuid, 1, 0, 'replicate', 'planned', moment() + interval '1 h',
        moment() - interval '6 min');
"""
NOTIFIED = """
INSERT INTO notifications (id, job_id, type, event_id, run_at, attempt, created_at)
VALUES (gen_random_uuid(), md5('job1')::uuid, 'job.failed', 1, moment() + interval '1 h', {}, moment() - interval '1 h')
"""
FAILING = """
UPDATE ticks SET started_at = moment() - interval '2 min' WHERE sweep = '{0}';
INSERT INTO ticks (sweep, slot, started_at)
VALUES ('{0}', 2, moment() - interval '72 s'), ('{0}', 3, moment() - interval '70 s'), ('{0}', 4, moment())
"""
TROUBLE = {
    "MoorageRetriesRising": ATTEMPTS.format(done=15, retry=10),
    "MoorageStorageUsed": STORED.format(300_000_000_000) + "; " + STORED.format(300_000_000_000).replace("ann", "bob"),
    "MoorageRequestsUnavailable": "ALTER TABLE deliveries RENAME TO deliveries_away",
    "MoorageNoFileKept": "UPDATE outputs SET created_at = moment() - interval '6 min' WHERE state = 'waiting'",
    "MoorageStorageFails": STORAGE_FAILED,
    "MoorageQueueWithoutWorker": "INSERT INTO ticks (sweep, slot, result)"
    """ VALUES ('drain', 2, '{"consumers": {"quick": 1, "keep": 0}}')""",
    "MoorageDeadLettersOpen": LETTER,
    "MoorageGaugeFailed": "BEGIN; LOCK TABLE storage_use",
    "MoorageWebhooksRefused": REFUSED.format(5),
    "MoorageNotificationsFail": NOTIFIED.format(4),
    "MooragePaused": "INSERT INTO pauses (target, paused_by, paused_at)"
    " VALUES ('keep', 'ann', moment() - interval '25 h')",
    "MoorageOldestDue": "UPDATE outputs SET run_at = moment() - interval '6 min' WHERE state = 'waiting'",
    "MoorageNoWebhook": "UPDATE deliveries SET received_at = received_at - interval '11 min';"
    " UPDATE predictions SET created_at = moment() - interval '11 min' WHERE state = 'running'",
    "MoorageWebhooksLost": "UPDATE predictions SET ended_by = 'poll' WHERE external_id IN ('p4', 'p5', 'p6', 'p7')",
    "MoorageOutputAboutToExpire": "UPDATE outputs SET expires_at = moment() + interval '4 min'",
    "MoorageProviderFails": "UPDATE predictions SET state = 'lost' WHERE external_id IN ('p4', 'p5', 'p6', 'p7', 'p8',"
    " 'p9', 'p10', 'p11')",
    "MoorageFallbacksAndPlaceholders": "UPDATE predictions SET seq = 1 WHERE external_id IN ('p4', 'p5', 'p6');"
    " UPDATE jobs SET state = 'partial' WHERE id = md5('job7')::uuid;"
    " UPDATE predictions SET provider = 'placeholder' WHERE external_id = 'p7'",
    "MoorageBillingRefused": "UPDATE predictions SET state = 'failed', category = 'BILLING_FAILED'"
    " WHERE external_id = 'p4'",
    "MoorageBeatSilent": "UPDATE ticks SET started_at = moment() - interval '2 min' WHERE sweep = 'dispatch'",
    "MoorageSweepFails": "UPDATE ticks SET started_at = moment() - interval '2 h' WHERE sweep = 'usage';"
    " INSERT INTO ticks (sweep, slot, started_at) VALUES ('usage', 2, moment() - interval '71 min'),"
    " ('usage', 3, moment() - interval '11 min')",
}
# Other faults that an alert stands for.
ALSO_TROUBLE = [
    ("MoorageOldestDue", BREAKERS.format(host="70 s", api="50 s")),
    ("MoorageOldestDue", BREAKERS.format(host="50 s", api="70 s")),
    ("MoorageQueueWithoutWorker", "UPDATE ticks SET started_at = moment() - interval '3 min' WHERE sweep = 'drain'"),
    ("MoorageBeatSilent", "DELETE FROM ticks WHERE sweep = 'reconcile'"),
    (
        "MoorageSweepFails",
        "INSERT INTO ticks (sweep, slot, started_at) VALUES ('orphans', 1, moment() - interval '1 day'),"
        " ('orphans', 1441, moment() - interval '11 min')",
    ),
    *(("MoorageSweepFails", FAILING.format(sweep)) for sweep in ("dispatch", "reconcile")),
    (
        "MoorageOldestDue",
        "UPDATE outputs SET lease_token = gen_random_uuid(), leased_by = 'a/1',"
        " leased_until = moment() - interval '6 min' WHERE state = 'waiting'",
    ),
    ("MoorageBeatSilent", "UPDATE ticks SET started_at = moment() - interval '3 min'"),
    ("MoorageBeatSilent", "UPDATE ticks SET started_at = moment() + interval '50 min' WHERE sweep = 'dispatch'"),
]
# What looks like trouble and is none.
CALM = {
    "a night without predictions has just ended": "UPDATE deliveries SET received_at = received_at - interval '8 h'",
    "the URL of a file expired whose bytes are in quarantine": "UPDATE outputs SET"
    " expires_at = moment() - interval '1 h', quarantine_key = 'quarantine/renders/x/0-a-b.bin', quarantine_bytes = 1,"
    " quarantine_sha256 = repeat('a', 64), quarantined_at = moment() WHERE state = 'waiting'",
    "somebody else posts webhooks": REFUSED.format(4),
    "webhooks were refused, and one was accepted after it": f"{REFUSED.format(9)};"
    " UPDATE webhook_refusals SET last_at = moment() - interval '2 min'",
    "a notification failed three times": NOTIFIED.format(3),
    "a third of many attempts is repeated": ATTEMPTS.format(done=40, retry=10),
    "all of a few attempts are repeated": ATTEMPTS.format(done=0, retry=9),
    "a sweep failed, and finished afterwards": "INSERT INTO ticks (sweep, slot, started_at)"
    " VALUES ('usage', 0, moment() - interval '1 h')",
    "a daily sweep failed once, and runs": "INSERT INTO ticks (sweep, slot, started_at)"
    " VALUES ('orphans', 1, moment() - interval '1 day'), ('orphans', 1441, moment() - interval '4 min')",
    "sweeps that failed are off": "INSERT INTO ticks (sweep, slot, started_at)"
    " VALUES ('orphans', 1, moment() - interval '10 days'), ('orphans', 1441, moment() - interval '9 days')",
    "less than half a terabyte is stored": STORED.format(400_000_000_000),
    "one file waits long while another is kept": "UPDATE outputs SET created_at = moment() - interval '6 min'"
    f" WHERE state = 'waiting'; {KEPT}",
    "files of a paused provider wait": "INSERT INTO pauses (target, paused_by) VALUES ('replicate', 'ann');"
    " UPDATE outputs SET created_at = moment() - interval '6 min' WHERE state = 'waiting'",
    "storage failed once, and a file was kept after it": f"{STORAGE_FAILED}; {KEPT}",
    "storage failed once, and nothing waits": f"{STORAGE_FAILED}; DELETE FROM outputs",
    "drain ticks, and its last count is an hour old": "INSERT INTO ticks (sweep, slot, started_at, result)"
    """ VALUES ('drain', 2, moment() - interval '1 h', '{"consumers": {"quick": 1, "keep": 0}}')""",
    "a provider was paused": "INSERT INTO pauses (target, paused_by) VALUES ('replicate', 'ann');"
    " UPDATE outputs SET run_at = moment() - interval '6 min' WHERE state = 'waiting'",
    "files and submissions wait for circuit breakers": BREAKERS.format(host="50 s", api="50 s"),
    "nothing runs, so nothing is awaited": "UPDATE deliveries SET received_at = received_at - interval '11 min';"
    " DELETE FROM outputs; DELETE FROM predictions WHERE state = 'running'",
    "a provider that never sent much": "DELETE FROM deliveries WHERE webhook_id <> 'w60'",
    "a provider without webhooks is only polled": "UPDATE predictions SET provider = 'runway', ended_by = 'poll'"
    " WHERE ended_at IS NOT NULL",
    "polls found the end of what was to be cancelled": "UPDATE predictions SET ended_by = 'poll', state = 'cancelled',"
    " cancel_reason = 'asked for' WHERE external_id IN ('p4', 'p5', 'p6', 'p7')",
    "a bad hour that is over": "UPDATE predictions SET state = 'lost', ended_by = 'poll',"
    " ended_at = moment() - interval '61 min' WHERE ended_at IS NOT NULL;"
    " UPDATE predictions SET seq = 1; UPDATE jobs SET settled_at = moment() - interval '61 min'"
    " WHERE settled_at IS NOT NULL",
    "two of three failed": "UPDATE predictions SET ended_at = moment() - interval '2 h' WHERE ended_at IS NOT NULL"
    " AND external_id NOT IN ('p1', 'p4', 'p5'); UPDATE predictions SET state = 'failed' WHERE external_id = 'p4'",
}  # fmt: skip


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return stack.postgres.create_database("alert_metrics", template=template_database)


@pytest.fixture(scope="module")
def receiver(url: str) -> Iterator[rp.Receiver]:
    with rp.running(url) as process:
        yield process


@pytest.fixture
def house(url: str, receiver: rp.Receiver) -> Iterator[Connection]:
    """Give a connection to the receiver's database, in which all is well."""
    conn = connect(url)
    conn.execute(EMPTY)
    conn.execute(WELL.encode())
    yield conn
    conn.close()


def scrape(receiver: rp.Receiver) -> list[Sample]:
    """Return all samples of a scrape, as Prometheus' own reader takes them, with what Prometheus adds."""
    status, _, body = receiver.scrape()
    assert status == 200
    families = text_string_to_metric_families(body.decode())
    target = {"job": "moorage", "instance": "a"}
    found = [Sample(one.name, {**one.labels, **target}, one.value) for family in families for one in family.samples]
    return [*found, Sample("up", target, 1.0)]


def firing(
    receiver: rp.Receiver, before: list[Sample] | None = None, others: tuple[Sample, ...] = ()
) -> dict[str, promql.Vector]:
    """Return the alerts whose expression gives anything, with what it gives; rates since the scrape `before`."""
    samples, now = [*scrape(receiver), *others], time.time()
    earlier = samples if before is None else before
    found = {rule["alert"]: promql.evaluate(promql.parse(rule["expr"]), samples, now, earlier) for rule in RULES}
    return {name: value for name, value in found.items() if isinstance(value, dict) and value}


def test_every_metric_and_label_that_is_asked_for_is_in_a_scrape(house: Connection, receiver: rp.Receiver) -> None:
    """An alert on a name that does not exist never fires, and says nothing about it."""
    house.execute(LETTER.encode())
    house.execute(TROUBLE["MoorageBillingRefused"].encode())
    house.execute(TROUBLE["MoorageQueueWithoutWorker"].encode())
    house.execute("INSERT INTO pauses (target, paused_by) VALUES ('replicate', 'ann')")
    house.execute(f"{ATTEMPTS.format(done=1, retry=1)}; {STORED.format(1)}; {OTHER_TOTALS}".encode())
    receiver.post(b"{}", webhook_id="asked_1")
    receiver.post(b"{}", webhook_id="asked_1")
    receiver.call("POST", "/webhooks/replicate", b"{}")
    rp.until(lambda: "moorage_wakes_dropped_total" in labels_by_name(receiver))  # the broker of these tests is away
    house.execute(f"{REFUSED.format(1)}; {NOTIFIED.format(4)}".encode())
    known = labels_by_name(receiver)
    text = receiver.scrape()[2].decode()

    asked = {use for text in EXPRESSIONS for use in promql.parse(text).uses()}

    # Of what never happened here there is no series: its name is declared all the same.
    assert {name for name, _ in asked if name not in known and f"# TYPE {name} " not in text} == set()
    assert {(name, *labels) for name, labels in asked if not labels <= known.get(name, set())} == set()


def labels_by_name(receiver: rp.Receiver) -> dict[str, set[str]]:
    """Return the labels of each series of a scrape."""
    known: dict[str, set[str]] = {}
    for sample in scrape(receiver):
        known.setdefault(sample.name, set()).update(sample.labels)
    return known


def test_when_all_is_well_nothing_fires(house: Connection, receiver: rp.Receiver) -> None:
    """An alert that is always on is off."""
    assert firing(receiver) == {}


@pytest.mark.parametrize("calm", CALM)
def test_what_looks_like_trouble_and_is_none_fires_nothing(house: Connection, receiver: rp.Receiver, calm: str) -> None:
    """Each of these would wake somebody for nothing."""
    before = scrape(receiver)
    house.execute(CALM[calm].encode())

    assert firing(receiver, before) == {}


@pytest.mark.parametrize("alert", sorted({*TROUBLE} | {rule["alert"] for rule in RULES} - {"MoorageReceiverDown"}))
def test_an_alert_fires_alone_for_its_own_trouble(house: Connection, receiver: rp.Receiver, alert: str) -> None:
    """Made of real rows, so that metric, label values, joins and threshold are all right, or it stays silent."""
    before = scrape(receiver)
    house.execute(TROUBLE[alert].encode())
    if alert == "MoorageRequestsUnavailable":
        statuses = [receiver.post(b"{}", webhook_id=f"away_{n}")[0] for n in range(2)]
        house.execute("ALTER TABLE deliveries_away RENAME TO deliveries")
        assert statuses == [503, 503]

    assert set(firing(receiver, before)) == {alert}


@pytest.mark.parametrize(("alert", "trouble"), ALSO_TROUBLE)
def test_an_alert_fires_alone_for_each_of_its_faults(
    house: Connection, receiver: rp.Receiver, alert: str, trouble: str
) -> None:
    """A rule with several conditions is proved by each."""
    before = scrape(receiver)
    house.execute(trouble.encode())

    assert set(firing(receiver, before)) == {alert}


@pytest.mark.parametrize("metric", ["up", "moorage_database_up"])
def test_one_receiver_of_two_that_is_down_or_blind_is_named(
    house: Connection, receiver: rp.Receiver, metric: str
) -> None:
    """The largest or smallest of all says nothing of it."""
    other = Sample(metric, {"job": "moorage", "instance": "b"}, 0.0)

    found = firing(receiver, others=(other,))

    assert set(found) == {"MoorageReceiverDown"}
    assert [dict(labels)["instance"] for labels in found["MoorageReceiverDown"]] == ["b"]


def test_the_values_that_an_alert_tells_are_those_of_the_rows(house: Connection, receiver: rp.Receiver) -> None:
    """The first number that a person sees decides what they do."""
    for alert in ("MoorageDeadLettersOpen", "MoorageOldestDue", "MoorageProviderFails", "MoorageNoWebhook"):
        house.execute(TROUBLE[alert].encode())

    found = {name: {tuple(sorted(labels)): v for labels, v in values.items()} for name, values in
             firing(receiver).items()}  # fmt: skip

    letters = (("category", "DOWNLOAD_FAILED"), ("provider", "replicate"), ("step", "keep"))
    assert found["MoorageDeadLettersOpen"] == {letters: 1.0}
    assert found["MoorageOldestDue"][(("table", "outputs"),)] == pytest.approx(360, abs=30)
    assert found["MoorageProviderFails"] == {(("provider", "replicate"),): pytest.approx(9 / 40)}
    assert found["MoorageNoWebhook"][(("provider", "replicate"),)] == pytest.approx(720, abs=30)


def test_silence_is_told_of_a_house_that_never_ticked(house: Connection, receiver: rp.Receiver) -> None:
    """No beat at all leaves no series to compare: that, too, must fire."""
    house.execute("TRUNCATE ticks")

    assert set(firing(receiver)) == {"MoorageBeatSilent"}
