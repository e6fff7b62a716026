"""Dead letters over HTTP and on the command line: a short-lived link to the file in quarantine, never shown as one."""

import base64
import json
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from db import api_tokens
from db.connection import Connection
from embedded.stack import Stack
from moorage import quarantine_links
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import kept_world as world
from tests.integration import web_process as wp

BROKEN = base64.b64decode(world.picture().partition(",")[2])[:60]  # a PNG, cut in its pixels


@pytest.fixture(scope="module")
def deps(stack: Stack, url: str) -> Iterator[Deps]:
    made = cli.deps(stack, url)
    yield made
    made.database.close()


@pytest.fixture(scope="module")
def front(stack: Stack, url: str) -> Iterator[wp.Front]:
    env = cli.environment(stack, url)
    storage = {name: value for name, value in env.items() if name.startswith(("AWS_", "S3_"))}
    with wp.running(url, PUBLIC_URL="https://moorage.example", **storage) as process:
        yield process


@pytest.fixture
def letter(deps: Deps, mine: Connection) -> dict[str, Any]:
    mine.execute("DELETE FROM dead_letters")
    job_id = world.kept(deps, f"p{mine.execute('SELECT count(*) AS n FROM jobs').fetchone()['n']}", [broken()])  # type: ignore[index]
    (row,) = mine.execute("SELECT * FROM dead_letters WHERE job_id = %s", [job_id]).fetchall()
    return row


def broken() -> str:
    return "data:image/png;base64," + base64.b64encode(BROKEN).decode()


def link_of(url: str) -> str:
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc) == ("https", "moorage.example")
    return f"{parts.path}?{parts.query}"


def test_the_link_downloads_the_bytes_and_shows_nothing(front: wp.Front, letter: dict[str, Any]) -> None:
    """A refused file may be anything: no browser shows it, under whatever type it came."""
    shown = front.get(f"/v1/dead-letters/{letter['id']}")
    path = link_of(shown.fields["quarantine"]["url"])

    status, headers, body = front.call("GET", path)
    head = front.call("HEAD", path)

    assert shown.status == 200
    assert shown.fields["reason"] == letter["reason"]
    assert shown.fields["quarantine"]["bytes"] == len(BROKEN)
    assert shown.fields["quarantine"]["url_seconds"] == 300
    assert (status, body) == (200, BROKEN)
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"] == f'attachment; filename="{letter["subject_id"]}.bin"'
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert (head[0], head[1]["content-length"], head[2]) == (200, str(len(BROKEN)), b"")


def test_only_an_admin_is_given_the_link(front: wp.Front, mine: Connection, letter: dict[str, Any]) -> None:
    """It is of any owner."""
    _, token = api_tokens.create(mine, "app", "application")

    answer = front.ask("GET", f"/v1/dead-letters/{letter['id']}", headers={"authorization": f"Bearer {token}"})

    assert answer.status == 403


def test_a_link_ends_and_is_valid_for_one_file(front: wp.Front, deps: Deps, letter: dict[str, Any]) -> None:
    """What is passed on by mistake is of no use tomorrow, nor for another file."""
    path = link_of(front.get(f"/v1/dead-letters/{letter['id']}").fields["quarantine"]["url"])
    settings = deps.settings.model_copy(update={"api_token": wp_secret()})
    old = quarantine_links.build_link(settings, letter["subject_id"], 1_000_000.0)
    assert old is not None
    expired = f"/v1/assets/quarantine/{letter['subject_id']}?{urlsplit(old).query}"

    assert front.call("GET", path.replace(str(letter["subject_id"]), str(letter["id"])))[0] == 403
    assert front.call("GET", expired)[0] == 403
    assert front.call("GET", path[:-1] + ("0" if path[-1] != "0" else "1"))[0] == 403
    assert front.call("GET", path.partition("?")[0])[0] == 403


def wp_secret() -> Any:
    from pydantic import SecretStr

    return SecretStr(wp.TOKEN)


def test_a_dead_letter_without_a_file_has_no_link(front: wp.Front, deps: Deps, mine: Connection) -> None:
    """Nothing was downloaded."""
    job_id = world.kept(deps, "evil", ["https://evil.example/x.png"])
    (row,) = mine.execute("SELECT id FROM dead_letters WHERE job_id = %s", [job_id]).fetchall()

    shown = front.get(f"/v1/dead-letters/{row['id']}")

    assert (shown.status, shown.fields["quarantine"]) == (200, None)
    assert front.get("/v1/dead-letters/01890000-0000-7000-8000-000000000001").status == 404


def test_dead_show_prints_the_link(front: wp.Front, stack: Stack, url: str, letter: dict[str, Any]) -> None:
    """Through the API where it has a token, else from storage."""
    public = "https://moorage.example"
    env = cli.environment(stack, url, PUBLIC_URL=public, MOORAGE_API_TOKEN=wp.TOKEN)

    through_api = json.loads(cli.run(env, "dead", "show", str(letter["id"]), "--json").stdout)["quarantine"]
    shown = cli.run(cli.environment(stack, url), "dead", "show", str(letter["id"])).stdout
    from_storage = json.loads(cli.run(cli.environment(stack, url), "dead", "show", str(letter["id"]), "--json").stdout)[
        "quarantine"
    ]

    assert front.call("GET", link_of(through_api["url"]))[2] == BROKEN
    assert "quarantine url" in shown
    with urllib.request.urlopen(from_storage["url"]) as response:
        assert response.read() == BROKEN
        assert response.headers["content-disposition"] == "attachment"
        assert response.headers["content-type"] == "application/octet-stream"
