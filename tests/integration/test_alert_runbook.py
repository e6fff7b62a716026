"""Four alerts provoked by real faults; what their sections of the runbook say is done, and ends them."""

import contextlib
import dataclasses
import functools
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import yaml
from celery import Celery
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from cli.commands.doctor.checks import check_buckets
from db import lock_holders
from db.connection import Connection, connect
from db.reports.metrics import collect_gauges
from embedded.stack import Stack
from storage import s3
from tasks.jobs import delete_render
from tests.integration import command_line as cli
from tests.integration import receiver_process as rp
from tests.integration.core import World, database_of, world
from tests.integration.worker_process import running_worker
from tests.support import promql
from tests.support.promql import Sample

RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((cli.ROOT / "deploy/alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
RUNBOOK = (cli.ROOT / "docs/runbook.md").read_text(encoding="utf-8")
BODY = b'{"id": "ufawqhfynnddngldkgtslldrkq", "status": "processing"}'


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "alert_runbook")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def section(alert: str) -> str:
    """Return the runbook's section of an alert."""
    (text,) = (text for text in RUNBOOK.split("\n## ") if f"*Alert {alert}" in text)
    return text


def firing(samples: list[Sample], before: list[Sample] | None = None) -> set[str]:
    found = {r["alert"]: promql.evaluate(promql.parse(r["expr"]), samples, time.time(), before or []) for r in RULES
             if before is not None or "rate(" not in r["expr"]}  # fmt: skip
    return {name for name, value in found.items() if value}


def gauges(conn: Connection) -> list[Sample]:
    return [
        Sample(sample.name, sample.labels, sample.value) for gauge in collect_gauges(conn) for sample in gauge.samples
    ]


def metrics_text(receiver: rp.Receiver) -> str:
    return receiver.scrape()[2].decode()


def scrape(receiver: rp.Receiver) -> list[Sample]:
    families = text_string_to_metric_families(metrics_text(receiver))
    return [Sample(one.name, one.labels, one.value) for family in families for one in family.samples]


def test_a_forgotten_session_is_found_and_ended(stack: Stack, database_url: str) -> None:
    """All webhooks get 503 behind somebody's console; status names its pid, and the runbook's statement ends it."""
    assert "[end it](#a-transaction-holds-locks)" in section("MoorageRequestsUnavailable")
    (end,) = set(re.findall(r"`(SELECT pg_terminate_backend\(PID\))`", RUNBOOK))
    with (
        contextlib.closing(psycopg.connect(database_url, application_name="console")) as console,
        rp.running(database_url, MOORAGE_DEV_ANSWER_SECONDS="2") as receiver,
    ):
        env = cli.environment(stack, database_url)
        before = scrape(receiver)
        console.execute("LOCK TABLE deliveries")

        assert receiver.post(BODY, webhook_id="msg_1")[0] == 503
        assert "MoorageRequestsUnavailable" in firing(scrape(receiver), before)
        # The lock hides only what it locks: other alerts go on.
        assert receiver.metric("moorage_database_up") == 1
        names = {line.split()[2] for line in metrics_text(receiver).splitlines() if line.startswith("# TYPE")}
        assert "moorage_outputs" in names
        assert "moorage_deliveries" not in names
        assert b"holds a lock on deliveries" in receiver.call("GET", "/readyz")[2]

        with contextlib.closing(connect(database_url)) as conn:
            rp.until(lambda: bool(lock_holders.list_holders(conn)))  # those that are idle for ten seconds
            (holder,) = json.loads(cli.run(env, "status", "--json").stdout)["lock_holders"]
            assert holder["application_name"] == "console"
            conn.execute(end.replace("PID", str(holder["pid"])).encode())

        rp.until(lambda: receiver.call("GET", "/readyz")[0] == 200)
        before = scrape(receiver)
        assert receiver.post(BODY, webhook_id="msg_1")[0] == 202
        assert "MoorageRequestsUnavailable" not in firing(scrape(receiver), before)


@pytest.mark.parametrize(
    "fault",
    [{"s3_endpoint_url": "http://127.0.0.1:9"}, {"aws_secret_access_key": SecretStr("wrong")}],
    ids=["unreachable", "refusing"],
)
def test_storage_that_fails_is_named_and_its_files_are_kept_after_it(
    stack: Stack, at: World, fault: dict[str, Any]
) -> None:
    """Each attempt moves run_at, so that no row is ever overdue: the failures themselves must fire."""
    made = at.keeping([at.source.picture()])
    (output_id,) = at.outputs(made.job_id)
    settings = at.deps.settings.model_copy(update=fault)
    broken = dataclasses.replace(at, deps=dataclasses.replace(at.deps, storage=s3.ObjectStore(settings)))
    broken.step("keep", output_id)

    with at.later("2 minutes") as then:
        assert firing(gauges(then.conn)) & {"MoorageStorageFails", "MoorageOldestDue"} == {"MoorageStorageFails"}
    assert [check.level for check in check_buckets(settings)] == ["fail"]

    commands = re.findall(r"`moorage ((?:pause|resume) keep)`", section("MoorageStorageFails"))
    env = cli.environment(stack, at.database_url)
    assert [cli.run(env, *command.split()).returncode for command in commands] == [0, 0]
    at.step("keep", output_id)

    assert at.state("jobs", made.job_id) == "succeeded"
    other = at.keeping([at.source.picture(1)])
    with at.later("2 minutes") as then:
        assert "MoorageStorageFails" not in firing(gauges(then.conn))
    delete = functools.partial(delete_render.delete_render, asset_base="", actor="api", reason="fetched")
    at.deps.database.run(lambda conn: delete(conn, made.job_id))
    with at.later("2 minutes") as then:
        assert "MoorageStorageFails" not in firing(gauges(then.conn)), "it was kept all the same"
    at.conn.execute("UPDATE outputs SET created_at = moment() - interval '6 min' WHERE job_id = %s", (other.job_id,))
    assert "MoorageNoFileKept" not in firing(gauges(at.conn))


@pytest.mark.prove
def test_a_queue_without_a_worker_gets_one(stack: Stack, at: World) -> None:
    """Its files wait while sweeps and webhooks go on; the command of the section ends both alerts."""
    made = at.keeping([at.source.picture()])
    at.conn.execute("UPDATE outputs SET created_at = moment() - interval '6 min'")
    settings, broker = at.deps.settings, stack.valkey.url(13)
    env = cli.environment(
        stack,
        at.database_url,
        CELERY_BROKER_URL=broker,
        MOORAGE_EGRESS_ALLOW=settings.egress_allow[0],
        REPLICATE_OUTPUT_HOSTS="127.0.0.1",
        MOORAGE_DEV_DRAIN_SECONDS="1",
    )
    app = Celery(broker=broker, set_as_current=False)
    both = {"MoorageQueueWithoutWorker", "MoorageNoFileKept"}

    def sweep_and_fire() -> set[str]:
        for name in ("drain", "dispatch"):
            app.send_task("moorage.sweep", args=[name], queue="quick")
        time.sleep(0.5)  # a tick; the next look follows in any case
        return firing(gauges(at.conn)) & both

    with running_worker(env, "-Q", "quick,sweeps", "-n", "quick@here"), contextlib.closing(app):
        rp.until(lambda: sweep_and_fire() == both, seconds=120)
        told = cli.run(env, "doctor").stdout
        assert "queue keep has " in told
        assert " and no worker that answers  (start one (moorage worker -Q keep), or restart one that hangs" in told
        assert "`moorage worker -Q keep`" in section("MoorageQueueWithoutWorker")

        with running_worker(env, "-Q", "keep", "-n", "keep@here"):
            rp.until(lambda: sweep_and_fire() == set(), seconds=120)

    assert at.state("jobs", made.job_id) == "succeeded"
