"""`moorage recover` against the stand-in's real list: what is missing is registered and polled, and nothing twice."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

import providers
from db.connection import Connection
from egress.guard import EgressGuard
from embedded.stack import Stack
from tasks.predictions import recover
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import kept_world as kw
from tests.integration.receiver_process import until
from tests.support.standin import Standin
from worker import step_runner

OURS = "http://127.0.0.1:9"
HOOK = f"{OURS}/webhooks/replicate"
QUICK: dict[str, Any] = {"standin": {"duration_s": 0.01, "outputs": 1, "webhook": "missing"}}


@pytest.fixture
def standin(tmp_path) -> Iterator[Standin]:
    with Standin().start(tmp_path / "standin") as running:
        yield running


@pytest.fixture
def deps(stack: Stack, database_url: str, standin: Standin) -> Iterator[Deps]:
    made = cli.deps(stack, database_url)
    yield made
    made.database.close()


@pytest.fixture
def env(stack: Stack, database_url: str, standin: Standin) -> dict[str, str]:
    # A queue of its own, so that no worker of another test takes the wakes.
    return cli.environment(
        stack, database_url, PUBLIC_URL=OURS, CELERY_BROKER_URL=stack.valkey.url(5), **standin.environment()
    )


def made(standin: Standin, webhook: str | None = HOOK) -> str:
    return str(standin.create_prediction(QUICK, webhook)["id"])


def states(conn: Connection) -> dict[str, tuple[str, bool]]:
    """Return each prediction's state by the provider's id, and whether it is due."""
    rows = conn.execute("SELECT external_id, state, coalesce(run_at <= moment(), false) AS due FROM predictions")
    return {row["external_id"]: (row["state"], row["due"]) for row in rows.fetchall()}


def test_what_is_missing_is_registered_and_polled(
    env: dict[str, str], deps: Deps, standin: Standin, conn: Connection
) -> None:
    """After an outage that outlasted the provider's retries nothing else tells of these files."""
    unknown, foreign, live, ended = made(standin), made(standin, "http://other.example/x"), made(standin), made(standin)
    cli.register_one(deps, live)
    kw.kept(deps, ended)

    done = cli.run(env, "recover", "replicate", "--since", "1h", "--yes", "--owner", "ada", "--json")

    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert found["found"] == {"unknown": 1, "live": 1, "ended": 1, "lost": 0, "foreign": 1}
    assert (found["registered"], found["polled"], found["unsent_wakes"]) == (1, 2, 0)
    assert states(conn) == {unknown: ("running", True), live: ("running", True), ended: ("succeeded", False)}
    owners = conn.execute("SELECT j.owner FROM jobs j JOIN predictions p ON p.job_id = j.id WHERE external_id = %s",
                          (unknown,)).fetchall()  # fmt: skip
    assert owners == [{"owner": "ada"}]
    assert foreign not in states(conn)


def test_what_was_recovered_is_kept(env: dict[str, str], deps: Deps, standin: Standin, conn: Connection) -> None:
    """The point of it: the files are in storage in the end, on the path that a lost webhook takes."""
    name = made(standin)
    until(lambda: standin.get_prediction(name)["status"] == "succeeded")
    settings = deps.settings.model_copy(
        update={
            "replicate_api_url": standin.url,
            "replicate_api_token": SecretStr(standin.token),
            "replicate_output_hosts": ("127.0.0.1",),
            "egress_allow": (standin.address,),
        }
    )
    worker = dataclasses.replace(
        deps,
        settings=settings,
        providers=providers.load(settings),
        session=EgressGuard(settings.egress_allow).new_session(deps.limits),
    )

    cli.run(env, "recover", "replicate", "--yes")
    (prediction,) = conn.execute("SELECT id FROM predictions").fetchall()
    for wake in step_runner._claim_and_run(worker, "poll", prediction["id"], "node/1").wakes:
        step_runner._claim_and_run(worker, wake.step, wake.row_id, "node/1")

    assert conn.execute("SELECT state, ended_by FROM predictions").fetchall() == [
        {"state": "succeeded", "ended_by": "poll"}
    ]
    assert conn.execute("SELECT state FROM outputs").fetchall() == [{"state": "kept"}]
    assert conn.execute("SELECT owner FROM renders").fetchall() == [{"owner": "recovered"}]


def test_it_may_be_run_again(env: dict[str, str], standin: Standin, conn: Connection) -> None:
    """Whoever is not sure whether it ran through runs it again."""
    made(standin)
    cli.run(env, "recover", "replicate", "--yes")

    again = cli.run(env, "recover", "replicate", "--yes", "--json")

    assert json.loads(again.stdout)["registered"] == 0
    assert json.loads(again.stdout)["found"]["live"] == 1
    assert len(states(conn)) == 1


@pytest.mark.parametrize(("point", "registered"), [("recover.before_commit", 0), ("recover.after_commit", 1)])
def test_a_crash_in_the_middle_leaves_work_for_the_next_run(
    env: dict[str, str], standin: Standin, conn: Connection, point: str, registered: int
) -> None:
    """Each registration is whole by itself, and due without any wake."""
    names = {made(standin) for _ in range(3)}

    crashed = cli.run({**env, "MOORAGE_FAILPOINT": point}, "recover", "replicate", "--yes")
    after_crash = states(conn)
    again = cli.run(env, "recover", "replicate", "--yes", "--json")

    assert crashed.returncode == -9
    assert list(after_crash.values()) == [("running", True)] * registered
    assert json.loads(again.stdout)["registered"] == 3 - registered
    assert set(states(conn)) == names


def test_a_dry_run_and_a_no_change_nothing(env: dict[str, str], standin: Standin, conn: Connection) -> None:
    """What it would do is seen before it is done."""
    name = made(standin)

    dry = cli.run(env, "recover", "replicate", "--dry-run")
    refused = cli.run(env, "recover", "replicate", stdin="n\n")
    plain = cli.run(env, "recover", "replicate", "--dry-run", "--json")

    assert dry.returncode == 0, dry.stderr
    assert "     1  not registered: to be registered and polled" in dry.stdout
    assert name in dry.stdout
    assert refused.returncode == 1
    assert "Register 1 and poll 1?" in refused.stderr
    assert json.loads(plain.stdout)["first"][0]["external_id"] == name
    assert states(conn) == {}


def test_those_with_another_webhook_are_taken_when_asked_for(
    env: dict[str, str], standin: Standin, conn: Connection
) -> None:
    """PUBLIC_URL may have changed, or the application gave no webhook at all."""
    names = {made(standin, None), made(standin, "http://old.example/webhooks/replicate")}

    done = cli.run(env, "recover", "replicate", "--all", stdin="y\n")

    assert done.returncode == 0, done.stderr
    assert "2 registered, 2 due for a poll now" in done.stdout
    assert set(states(conn)) == names


def test_a_webhook_that_waited_for_a_registration_is_applied(
    env: dict[str, str], deps: Deps, standin: Standin, conn: Connection
) -> None:
    """It may be the only copy of the answer when the provider has deleted its own."""
    name = made(standin)
    delivery = kw.deliver(deps, {"id": name, "status": "succeeded", "output": [kw.picture()]})
    kw.work(deps, delivery)
    conn.execute("UPDATE deliveries SET run_at = moment() + interval '5 min'")

    cli.run(env, "recover", "replicate", "--yes")

    rows = conn.execute("SELECT state, run_at <= moment() AS due FROM deliveries").fetchall()
    assert rows == [{"state": "unmatched", "due": True}]


def test_a_list_of_several_pages_is_gone_through(
    env: dict[str, str], deps: Deps, standin: Standin, conn: Connection
) -> None:
    """The stand-in pages by a hundred, as Replicate does; counts are of all, lines of the first."""
    for _ in range(103):
        made(standin)

    done = cli.run(env, "recover", "replicate", "--yes", "--json")

    found = json.loads(done.stdout)
    assert (found["found"]["unknown"], found["registered"], len(found["first"])) == (103, 103, 10)
    assert len(states(conn)) == 103


def test_only_the_time_asked_for_is_listed(env: dict[str, str], standin: Standin) -> None:
    """A provider keeps its list for months."""
    name = made(standin)
    until(lambda: standin.get_prediction(name)["status"] == "succeeded")

    later = cli.run(env, "recover", "replicate", "--since", "0s", "--dry-run", "--json")
    wrong = cli.run(env, "recover", "replicate", "--since", "2 hours")

    assert sum(json.loads(later.stdout)["found"].values()) == 0
    assert wrong.returncode == 2
    assert "90s, 30m, 2h or 1d" in wrong.stderr


def test_a_provider_that_is_away_or_refuses_is_told_in_one_line(env: dict[str, str], standin: Standin) -> None:
    """Half a list taken for all of it would end the search too early."""
    standin.begin_outage(600)
    away = cli.run(env, "recover", "replicate")
    refusing = cli.run({**env, "REPLICATE_API_TOKEN": "r8_wrong"}, "recover", "replicate")
    none = cli.run(env, "recover", "standard")
    misspelt = cli.run(env, "recover", "replicat")

    for done, told in ((away, "503"), (refusing, "401"), (none, "has no list"), (misspelt, "or replicate or")):
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1, done.stderr
        assert told in done.stderr


def test_a_paused_provider_and_a_broker_that_is_away_are_told(
    env: dict[str, str], standin: Standin, conn: Connection
) -> None:
    """Whoever waits for the files must know what they wait for."""
    made(standin)
    cli.run(env, "pause", "replicate")

    done = cli.run({**env, "CELERY_BROKER_URL": f"redis://{cli.nowhere()}/0"}, "recover", "replicate", "--yes")

    assert done.returncode == 0, done.stderr
    assert "the broker is unavailable: processing starts when it is available again" in done.stdout
    assert "replicate is paused: nothing is polled before moorage resume replicate" in done.stdout


@pytest.mark.parametrize(
    ("webhook", "is_ours"),
    [
        ("https://us.example/webhooks/replicate", True),
        ("https://us.example/api/v1/webhooks/replicate?job=1", True),
        ("https://us.example.evil.example/webhooks/replicate", False),
        ("https://us.example", False),
        (None, False),
    ],
)
def test_a_webhook_is_ours_below_the_public_url(webhook: str | None, is_ours: bool) -> None:
    """Another system on the same account has its own predictions, and its own bill."""
    assert recover.is_own_webhook(webhook, "https://us.example") is is_ours
    assert recover.is_own_webhook(webhook, "https://us.example/") is is_ours
