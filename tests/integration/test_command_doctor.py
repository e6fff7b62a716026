"""`moorage doctor` against real servers, right and wrong, and `moorage simulate` against a real receiver."""

import base64
import json
import shlex
import subprocess

import redis

from cli.commands.doctor import checks
from db import migrate
from db.connection import Connection, connect
from embedded.stack import Stack
from moorage.settings import load_settings
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import provider_server
from tests.integration import receiver_process as rp


def found(env: dict[str, str]) -> tuple[int, dict[str, list[str]]]:
    """Return the exit status, and what was found by level."""
    done = cli.run(env, "doctor", "--json")
    checks = json.loads(done.stdout)
    return done.returncode, {
        level: [c["what"] for c in checks if c["level"] == level] for level in ("ok", "warn", "fail")
    }


def test_a_right_system_is_told_so(stack: Stack, database_url: str, deps: Deps, conn: Connection) -> None:
    """All but the processes, which do not run here: no check may cry at what is right."""
    conn.execute(
        "INSERT INTO ticks (sweep, slot, finished_at) SELECT s, 1, moment() FROM unnest(ARRAY['dispatch', 'drain']) s"
    )
    env = cli.environment(stack, database_url, MOORAGE_API_TOKEN="t" * 40, PUBLIC_URL="https://moorage.example.com")

    status, told = found(env)

    (silent,) = told["fail"]
    assert silent.startswith("no worker answered in 3 s; ")  # other tests leave wakes in the queues
    assert status == 1
    assert told["warn"] == [
        "fal: no webhook secret, its webhooks are refused",
        "openai: no webhook secret, its webhooks are refused",
        "standard: no webhook secret, its webhooks are refused",
        "no REPLICATE_API_TOKEN: predictions with lost webhooks cannot be polled",
        "these sweeps never ran: counts, discard, reconcile",
    ]
    assert f"schema version {migrate.SCHEMA_VERSION}" in told["ok"]
    assert {"the broker evicts no messages (noeviction)", "the broker accepts messages"} <= set(told["ok"])
    assert "anyone can read bucket moorage-public" in " ".join(told["ok"])
    assert "anonymous readers cannot read bucket moorage-private" in told["ok"]
    assert [x.key for x in deps.storage.list_objects("moorage-public", "doctor/")] == []


def test_servers_that_are_away_are_each_told(stack: Stack, database_url: str) -> None:
    """One server that is away must not hide the next."""
    env = cli.environment(
        stack,
        f"postgresql://x:y@{cli.nowhere()}/z",
        CELERY_BROKER_URL=f"redis://:verysecret@{cli.nowhere()}/0",
        AWS_ENDPOINT_URL_S3=f"http://{cli.nowhere()}",
        MOORAGE_API_TOKEN="shortsecret",
    )

    done = cli.run(env, "doctor")

    assert done.returncode == 1
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("fail")] == [
        "PostgreSQL",
        "the",
        "storage:",
    ]
    assert "PUBLIC_URL is http://127.0.0.1:8000: providers cannot reach it" in done.stdout
    for secret in ("verysecret", "shortsecret", env["REPLICATE_WEBHOOK_SECRET"]):
        assert secret not in done.stdout + done.stderr


def test_a_wrong_setting_is_a_failed_check(stack: Stack, database_url: str) -> None:
    """The doctor is asked when nothing starts."""
    done = cli.run(cli.environment(stack, database_url, MOORAGE_LEASE_SECOND="9"), "doctor")

    assert done.returncode == 1
    assert done.stdout.startswith("fail  MOORAGE_LEASE_SECOND is not a setting: did you mean MOORAGE_LEASE_SECONDS?")


def test_maintenance_that_is_off_is_a_warning(deps: Deps) -> None:
    """It is set for a restore, and forgotten: nothing expires, and no storage use is counted."""
    told = {
        line: [check.level for check in checks.check_provider_settings(settings) if "MAINTENANCE" in check.what]
        for line in ("17 3 * * *", " OFF")
        for settings in (deps.settings.model_copy(update={"maintenance_cron": line}),)
    }

    assert told == {"17 3 * * *": [], " OFF": ["warn"]}


def test_an_empty_database_asks_for_migrate(stack: Stack, deps: Deps) -> None:
    """The most usual state of a fresh installation."""
    url = stack.postgres.create_database("moorage_doctor_empty")

    _, told = found(cli.environment(stack, url))

    assert f"database schema 0 is older than {migrate.SCHEMA_VERSION}" in told["fail"]


def test_a_broker_that_evicts_is_a_failure(stack: Stack, database_url: str) -> None:
    """Redis would throw wakes away under pressure, and every one costs seconds."""
    client = redis.Redis.from_url(stack.valkey.url())
    settings = load_settings(_env_file=None, database_url=database_url, broker_url=stack.valkey.url())
    before = client.config_get("maxmemory-policy")["maxmemory-policy"]  # type: ignore[index]  # not async
    try:
        client.config_set("maxmemory-policy", "allkeys-lru")
        told = {check.what: check.level for check in checks.check_broker(settings)}
    finally:
        client.config_set("maxmemory-policy", before)
        client.close()

    assert told["the broker may evict messages (allkeys-lru)"] == "fail"


def test_a_broker_is_asked_by_the_name_it_has(stack: Stack, database_url: str) -> None:
    """The compose file's own is called valkey: looked for under another name, it would be told to be away."""
    client = redis.Redis.from_url(stack.valkey.url())
    url = f"redis://valkey:of-valkey@127.0.0.1:{stack.valkey.port}/0"
    try:
        client.acl_setuser(
            "valkey", enabled=True, passwords=["+of-valkey"], commands=["+@all"], keys=["*"], channels=["*"]
        )
        told = list(checks.check_broker(load_settings(_env_file=None, database_url=database_url, broker_url=url)))
    finally:
        client.acl_deluser("valkey")
        client.close()

    assert [check.level for check in told] == ["ok"] * 4


def test_a_simulated_webhook_is_taken_by_a_real_receiver(stack: Stack, database_url: str) -> None:
    """The curl line is pasted into a shell: every quote in it must hold."""
    env = cli.environment(stack, database_url, REPLICATE_WEBHOOK_SECRET=rp.SECRET)
    with rp.running(database_url) as receiver:
        base = f"http://127.0.0.1:{receiver.port}"
        printed = cli.run(env, "simulate", "replicate", "--id", "it's $HOME", "--url", base)
        pasted = subprocess.run(["sh", "-c", printed.stdout], capture_output=True, text=True, timeout=60, check=False)
        sent = cli.run(env, "simulate", "replicate", "--id", "two", "--url", base, "--send")
        env["REPLICATE_WEBHOOK_SECRET"] = "whsec_" + base64.b64encode(b"another-secret-of-another-sender").decode()
        wrong = cli.run(env, "simulate", "replicate", "--url", base, "--send")

    with connect(database_url) as conn:
        bodies = [json.loads(row["body"]) for row in conn.execute("SELECT body FROM deliveries ORDER BY id").fetchall()]
    assert pasted.stdout.startswith("HTTP/1.1 202"), pasted.stdout + pasted.stderr
    assert sent.stdout.startswith("202 ")
    assert [body["id"] for body in bodies] == ["it's $HOME", "two"]
    assert (wrong.returncode, wrong.stdout[:4]) == (1, "401 ")
    assert shlex.split(printed.stdout)[0] == "curl"


def test_a_simulated_webhook_that_is_redirected_has_failed(stack: Stack, database_url: str) -> None:
    """A proxy from http: to https: took it, and nobody recorded it."""
    env = cli.environment(stack, database_url)
    with provider_server.running() as proxy:
        proxy.answer = provider_server.answer(308, b"moved\r\x1b[2Jend", Location="https://moorage.example/")
        sent = cli.run(env, "simulate", "replicate", "--url", f"http://127.0.0.1:{proxy.server_port}", "--send")

    assert (sent.returncode, sent.stdout) == (1, "308 Permanent Redirect: moved\\r\\x1b[2Jend\n")


def test_without_a_secret_simulate_says_what_to_write(stack: Stack, database_url: str) -> None:
    """Nothing can be signed with nothing."""
    done = cli.run(cli.environment(stack, database_url), "simulate", "standard")

    assert done.returncode == 1
    assert done.stderr.startswith("moorage: STANDARD_WEBHOOK_SECRET is not set: write ")
