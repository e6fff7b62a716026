"""`moorage dead` and `moorage show`: finding out what is wrong, and doing something about one or about all."""

import json

import pytest

from db.connection import Connection
from embedded.stack import Stack
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import kept_world as world


@pytest.fixture
def env(stack: Stack, database_url: str) -> dict[str, str]:
    return cli.environment(stack, database_url)


def refused(deps: Deps, *names: str) -> None:
    """Make jobs whose one file must not be fetched: each a dead letter that can be tried again."""
    for name in names:
        world.kept(deps, name, ["https://evil.example/x.png"])


def states(conn: Connection, table: str) -> list[str]:
    return [row["state"] for row in conn.execute(f"SELECT state FROM {table} ORDER BY id".encode()).fetchall()]


def test_dead_letters_are_listed_in_groups(deps: Deps, env: dict[str, str]) -> None:
    """A thousand letters with one cause are one problem."""
    refused(deps, "a", "b")
    world.work(deps, world.deliver(deps, b"not json"))

    groups = json.loads(cli.run(env, "dead", "list", "--json").stdout)
    shown = cli.run(env, "dead", "list").stdout
    each = json.loads(cli.run(env, "dead", "list", "--all", "--step", "ingest", "--json").stdout)

    assert [(g["count"], g["category"]) for g in groups] == [(2, "DOWNLOAD_FAILED"), (1, "VALIDATION_FAILED")]
    assert "evil.example" in shown
    assert len(each) == 3


def test_replay_asks_first_and_then_replays_all_that_match(deps: Deps, env: dict[str, str], conn: Connection) -> None:
    """In bulk a slip costs much: the preview says how many of which kind."""
    refused(deps, "a", "b")
    world.work(deps, world.deliver(deps, b"not json"))

    no = cli.run(env, "dead", "replay", "--category", "DOWNLOAD_FAILED", stdin="n\n")
    before = states(conn, "dead_letters")
    yes = cli.run(env, "dead", "replay", "--category", "DOWNLOAD_FAILED", stdin="y\n")

    assert no.returncode == 1
    assert "Replay 2 dead letters?" in no.stderr
    assert before == ["open"] * 3
    assert yes.returncode == 0, yes.stderr
    assert yes.stdout == "2 replayed\n"
    assert sorted(states(conn, "dead_letters")) == ["open", "replayed", "replayed"]
    assert states(conn, "outputs") == ["waiting", "waiting"]


def test_what_is_refused_is_told_with_its_reason(deps: Deps, env: dict[str, str], conn: Connection) -> None:
    """Half of a bulk may be done: which half must be known."""
    refused(deps, "a", "b")
    conn.execute("UPDATE outputs SET source = NULL WHERE id = (SELECT min(id::text)::uuid FROM outputs)")

    done = cli.run(env, "dead", "replay", "--all", "--yes", "--json")

    result = json.loads(done.stdout)
    assert done.returncode == 1
    assert result["done"] == 1
    assert [one["reason"] for one in result["refused"]] == ["output is no longer dead, or its source was purged"]


def test_a_dead_letter_is_discarded_by_the_start_of_its_id(deps: Deps, env: dict[str, str], conn: Connection) -> None:
    """Nobody types 36 characters; and nothing is done where the start of an id is not enough."""
    refused(deps, "a", "b")
    # Ids begin with the time, which may go on to the next digit between two of them.
    conn.execute("UPDATE dead_letters SET id = overlay(id::text PLACING '01999999' FROM 1)::uuid")
    first = str(conn.execute("SELECT id FROM dead_letters ORDER BY id LIMIT 1").fetchone()["id"])  # type: ignore[index]

    vague = cli.run(env, "dead", "discard", first[:8], "--yes")
    done = cli.run(env, "dead", "discard", first[:30], "--yes")

    assert vague.returncode == 1
    assert "2 dead letters begin with" in vague.stderr
    assert done.stdout == "1 discarded\n"
    assert states(conn, "dead_letters") == ["discarded", "open"]


def test_all_must_be_asked_for_by_name(env: dict[str, str]) -> None:
    """A forgotten filter must not mean everything."""
    done = cli.run(env, "dead", "replay", "--yes")

    assert done.returncode == 2
    assert "--all" in done.stderr


@pytest.mark.parametrize("known_as", ["job", "prediction", "output", "delivery", "dead letter", "external", "webhook"])
def test_a_thing_is_found_by_any_of_its_names(deps: Deps, env: dict[str, str], conn: Connection, known_as: str) -> None:
    """What a person has at hand is whatever a log line or a support mail said."""
    refused(deps, "its-external-id")
    sql = {
        "job": "SELECT id::text AS name FROM jobs",
        "prediction": "SELECT left(id::text, 28) AS name FROM predictions",
        "output": "SELECT id::text AS name FROM outputs",
        "delivery": "SELECT id::text AS name FROM deliveries",
        "dead letter": "SELECT id::text AS name FROM dead_letters",
        "external": "SELECT external_id AS name FROM predictions",
        "webhook": "SELECT webhook_id AS name FROM deliveries",
    }[known_as]
    name = conn.execute(sql.encode()).fetchone()["name"]  # type: ignore[index]

    done = cli.run(env, "show", name)

    assert done.returncode == 0, done.stderr
    assert "Timeline" in done.stdout
    assert "next: " in done.stdout


@pytest.mark.parametrize("known_as", ["external_id", "left(id::text, 13)"])
def test_a_providers_id_and_the_beginning_of_ids_of_one_job_lead_to_the_job(
    deps: Deps, env: dict[str, str], conn: Connection, known_as: str
) -> None:
    """The prediction alone says nothing of its files. Ids of one job begin with the same time."""
    refused(deps, "its-external-id")
    conn.execute("UPDATE outputs SET id = overlay(prediction_id::text placing 'ffff' from 20)::uuid")
    row = conn.execute(f"SELECT job_id, {known_as} AS name FROM predictions".encode()).fetchone()
    assert row is not None

    report = json.loads(cli.run(env, "show", row["name"], "--json").stdout)

    assert (report["subject"], report["id"]) == ("job", str(row["job_id"]))


def test_the_story_of_a_job_tells_what_happened_and_what_comes(
    deps: Deps, env: dict[str, str], conn: Connection
) -> None:
    """One command instead of five queries at three in the night."""
    world.kept(deps, "a", [world.picture(), "data:image/png;base64,a*b"])
    letter = conn.execute("SELECT id FROM dead_letters").fetchone()["id"]  # type: ignore[index]
    job_id = conn.execute("SELECT id FROM jobs").fetchone()["id"]  # type: ignore[index]

    shown = cli.run(env, "show", str(job_id)).stdout
    story = json.loads(cli.run(env, "show", str(job_id), "--json").stdout)

    assert "waiting > kept" in shown
    assert "keeping > partial" in shown
    assert f"next: dead letter: moorage dead replay {letter}" in shown
    key = story["outputs"][0]["key"]
    assert f"    stored {deps.storage.build_asset_url(key)}\n" in shown
    assert [output["state"] for output in story["outputs"]] == ["kept", "dead"]
    assert story["deliveries"][0]["state"] == "applied"
    assert story["events"][0]["subject"] in ("job", "prediction")


def test_an_unknown_name_is_one_line_and_status_1(env: dict[str, str]) -> None:
    """What went wrong is one line."""
    done = cli.run(env, "show", "nobody-knows-me")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "moorage: no record matches nobody-knows-me\n"


def test_a_dead_letter_is_acknowledged_with_a_note(deps: Deps, env: dict[str, str], conn: Connection) -> None:
    """`moorage status` names it as a remedy; only the API and the console could."""
    refused(deps, "a", "b")
    first = str(conn.execute("SELECT id FROM dead_letters ORDER BY id LIMIT 1").fetchone()["id"])  # type: ignore[index]

    without = cli.run(env, "dead", "acknowledge", first, "--yes")
    done = cli.run(env, "dead", "acknowledge", first, "--note", "host is known", "--yes")

    rows = conn.execute("SELECT state, acknowledged_by, note FROM dead_letters ORDER BY id").fetchall()
    assert (without.returncode, done.returncode, done.stdout) == (2, 0, "1 acknowledged\n")
    assert rows[0] == {"state": "open", "acknowledged_by": "cli", "note": "host is known"}
    assert rows[1]["note"] is None


@pytest.mark.parametrize("command", ["list", "replay", "discard"])
def test_a_mistyped_provider_is_named(deps: Deps, env: dict[str, str], command: str) -> None:
    """ "0 replayed" looked like a success. A provider that is no longer configured has dead letters still."""
    refused(deps, "a")

    done = cli.run(env, "dead", command, "--provider", "replicat", *([] if command == "list" else ["--yes"]))
    known = cli.run(env, "dead", "list", "--provider", "fal")

    assert done.returncode == 1
    assert "no row names the provider replicat; configured: direct, fal" in done.stderr
    assert (known.returncode, known.stdout) == (0, "no open dead letter matches\n")
    assert cli.run(env, "dead", "list", "--limit", "0").returncode == 2
