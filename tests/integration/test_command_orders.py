"""What `status`, `show` and `doctor` tell of orders and uploads."""

import json

import pytest
from click.testing import CliRunner

from cli.commands import job, list_rows
from db import uploads
from db.connection import Connection
from db.uploads import Upload
from embedded.stack import Stack
from moorage import ids
from moorage.model import FallbackEntry, JobRequest, Media
from tasks.jobs import create
from tasks.step import Deps
from tests.integration import command_line as cli
from worker import boot, publish

KEYS = {"REPLICATE_API_TOKEN": "r8_x", "FAL_KEY": "a:b", "OPENAI_API_KEY": "sk-x"}


def test_an_order_is_told_with_its_chain_and_its_place_in_the_queue(
    stack: Stack, database_url: str, deps: Deps
) -> None:
    """Whoever waits for a picture asks at which provider it is, and what comes next."""
    chain = (
        FallbackEntry("replicate", "a/model", {"prompt": "a boat"}, 60.0),
        FallbackEntry("fal", "b/model", {"prompt": "a boat"}, 600.0),
    )
    request = JobRequest(owner="ada", fallback_chain=chain, deadline_seconds=3600.0)
    made = create.create_job(deps.database, deps.settings, deps.providers, request)
    env = cli.environment(stack, database_url, **KEYS)

    told = cli.run(env, "show", str(made.job_id))
    seen = json.loads(cli.run(env, "status", "--json").stdout)

    assert told.returncode == 0, told.stderr
    assert "replicate a/model (60 s), then fal b/model (10 min)" in told.stdout
    assert "submitted now if replicate has capacity" in told.stdout
    (replicate,) = [one for one in seen["providers"] if one["provider"] == "replicate"]
    assert (replicate["takes_orders"], replicate["planned"], replicate["at_work"]) == (True, 1, 0)
    assert replicate["at_once"] == 10


def test_a_job_is_cancelled_and_retried_from_the_terminal(
    deps: Deps, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator has a shell, and no token of the application."""
    monkeypatch.setattr(boot, "get_deps", lambda: deps)
    monkeypatch.setattr(publish, "publish_wakes", len)
    made = cli.register_one(deps)

    cancelled = CliRunner().invoke(job.job, ["cancel", str(made.job_id)])
    refused = CliRunner().invoke(job.job, ["retry", str(made.job_id)[:18]])
    unknown = CliRunner().invoke(job.job, ["cancel", "ffffffff"])

    assert cancelled.output == f"job {made.job_id} is cancelled, it was open\n"
    assert "only failed and partial jobs can be retried" in str(refused.exception)
    assert "no job matches ffffffff" in str(unknown.exception)
    events = conn.execute("SELECT actor FROM events WHERE subject = 'job' AND to_state = 'cancelled'").fetchall()
    assert events == [{"actor": "cli"}]


def test_rows_are_listed_by_kind_and_filter(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line each, in the width of the terminal, and the command that prints the next page."""
    monkeypatch.setattr(boot, "get_deps", lambda: deps)
    monkeypatch.setenv("COLUMNS", "80")
    made = [cli.register_one(deps, f"{number}-{'x' * 60}") for number in range(3)]

    shown = CliRunner().invoke(list_rows.list_rows, ["predictions", "--provider", "replicate", "--limit", "2"])
    rest = CliRunner().invoke(
        list_rows.list_rows, ["predictions", "--since", "1h", "--before", str(made[1].prediction_id), "--json"]
    )
    none = CliRunner().invoke(list_rows.list_rows, ["jobs", "--state", "failed"])
    of_job = CliRunner().invoke(list_rows.list_rows, ["predictions", "--job", str(made[1].job_id)[:18], "--json"])

    header, *lines, following = shown.output.splitlines()
    assert header.split() == ["ID", "AGE", "STATE", "PROVIDER", "EXTERNAL_ID", "MODEL"] or header.endswith("…")
    assert [line.split()[0] for line in lines] == [str(x.prediction_id)[:18] for x in (made[2], made[1])]
    assert max(map(len, (header, *lines))) == 80
    assert following == f"next page: --before {made[1].prediction_id}"
    assert [row["id"] for row in json.loads(rest.output)["rows"]] == [str(made[0].prediction_id)]
    assert none.output == "no jobs match\n"
    bogus = CliRunner().invoke(list_rows.list_rows, ["jobs", "--state", "bogus"])
    assert (bogus.exit_code, "use one of open, keeping, succeeded" in bogus.output) == (2, True)
    unknown = CliRunner().invoke(list_rows.list_rows, ["jobs", "--provider", "replicat"])
    assert "no row names the provider replicat" in str(unknown.exception)
    assert [row["id"] for row in json.loads(of_job.output)["rows"]] == [str(made[1].prediction_id)]


def test_what_an_application_started_takes_no_room_in_status(stack: Stack, database_url: str, deps: Deps) -> None:
    """A line that says 10 of 10 while orders are let through sends whoever is on call the wrong way."""
    cli.register_one(deps, "p1")

    seen = json.loads(cli.run(cli.environment(stack, database_url, **KEYS), "status", "--json").stdout)

    (replicate,) = [one for one in seen["providers"] if one["provider"] == "replicate"]
    assert (seen["predictions"], replicate["at_work"]) == ({"running": 1}, 0)


def test_an_upload_is_told(stack: Stack, database_url: str, deps: Deps, conn: Connection) -> None:
    """An id in a job's input has to lead somewhere."""
    media = Media("image", "png", "image/png", "png", 20, 10)
    upload = Upload(ids.uuid7(), "ada", "ada/inputs/x.png", media, 100, "0" * 64)
    uploads.add(conn, upload)

    told = cli.run(cli.environment(stack, database_url), "show", str(upload.id))

    assert told.returncode == 0, told.stderr
    assert f"upload {upload.id}" in told.stdout
    assert "ada/inputs/x.png" in told.stdout
    assert "stored" in told.stdout


def test_doctor_tells_who_takes_orders_and_whom_ends_are_told(stack: Stack, database_url: str, deps: Deps) -> None:
    """A key that is missing shows before the first order is refused; no secret is asked of whom sends no webhook."""
    more = {**KEYS, "MOORAGE_NOTIFY_URL": "http://127.0.0.1:1/hooks", "MOORAGE_NOTIFY_SECRET": cli.SECRET}

    with_keys = cli.run(cli.environment(stack, database_url, **more), "doctor").stdout
    without = cli.run(cli.environment(stack, database_url), "doctor").stdout

    for name in ("replicate", "fal", "openai"):
        assert f"{name}: accepts submissions, at most 10 in flight" in with_keys
        assert f"{name}: accepts submissions" not in without
    assert "notifications go to http://127.0.0.1:1/hooks, signed with 1 secret" in with_keys
    assert "openai: no webhook secret" not in with_keys
    assert "openai: no webhook secret" in without
