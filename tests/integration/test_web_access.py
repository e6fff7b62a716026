"""Authorization: every operation with every kind of token."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID, uuid4

import pytest

from db import api_tokens
from db.connection import Connection, connect
from embedded.stack import Stack
from moorage.owner_tokens import SCOPES
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import kept_world as world
from tests.integration import web_process as wp
from tests.support import operations as routes
from tests.support.operations import Operation
from web.http.permissions import Level

OPERATIONS: Final = [pytest.param(o, id=f"{o.method} {o.path}") for o in routes.OPERATIONS]
OWNED: Final = [
    pytest.param(o, id=f"{o.method} {o.path}")
    for o in routes.OPERATIONS
    if o.min_level is Level.OWNER
    and o.method != "PUT"  # the id of a project is free for each owner
    and re.search(r"{(job|render|upload|project)_id}", o.path)
]
REFUSED: Final = {"/events": "?limit=1", "/models": "?kind=none"}
# Right bodies, so that what is refused is refused for the caller's sake. An address that takes one must be named here.
BODIES: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("POST", "/keep"): {"owner": "ada", "urls": ["https://files.example/a.png"]},
    ("POST", "/predictions"): {"provider": "replicate", "external_id": "walked", "owner": "ada"},
    ("POST", "/jobs"): {"owner": "ada", "chain": []},
    ("POST", "/jobs/cancel"): {"job_ids": [str(uuid4())]},
    ("POST", "/renders/delete"): {"render_ids": [str(uuid4())]},
    ("PATCH", "/renders/{render_id}"): {"title": "walked"},
    ("POST", "/owner-tokens"): {"owner": "ada"},
    ("POST", "/tokens"): {"name": "walked"},
    ("POST", "/erasures"): {"owner": "walked"},
    ("POST", "/dead-letters/replay"): {"filter": {"error": "none"}},
    ("POST", "/dead-letters/discard"): {"filter": {"error": "none"}},
    ("POST", "/dead-letters/acknowledge"): {"filter": {"error": "none"}, "note": "walked"},
    ("POST", "/pauses"): {"target": "direct"},
    ("POST", "/recoveries"): {"provider": "fal"},
    ("PUT", "/projects/{project_id}"): {"document": {"scenes": []}},
    ("POST", "/projects/{project_id}/scenes"): {"scene": {"id": "walked"}},
    ("PATCH", "/projects/{project_id}/scenes"): {"order": []},
}


@pytest.fixture(scope="module")
def front(url: str, stack: Stack) -> Iterator[wp.Front]:
    storage = {name: value for name, value in stack.environment().items() if name.startswith("AWS_")}
    with wp.running(url, wp.Front, **storage) as process:
        yield process


@pytest.fixture(scope="module")
def deps(stack: Stack, url: str) -> Iterator[Deps]:
    made = cli.deps(stack, url)
    yield made
    made.database.close()


@pytest.fixture(scope="module")
def mine(url: str) -> Iterator[Connection]:
    made = connect(url)
    yield made
    made.close()


@pytest.fixture(scope="module")
def tokens(front: wp.Front, mine: Connection) -> dict[Level, dict[str, str]]:
    """Return the headers of one caller of each level; the owner is bob."""
    return {
        Level.OPEN: {},
        Level.OWNER: owner_token(front, "bob"),
        Level.APPLICATION: bearer(api_tokens.create(mine, "walker", "application")[1]),
        Level.VIEWER: bearer(api_tokens.create(mine, "watcher", "viewer")[1]),
        Level.ADMIN: bearer(api_tokens.create(mine, "chief", "admin")[1]),
    }


@pytest.fixture(scope="module")
def of_ada(deps: Deps, mine: Connection) -> dict[str, str]:
    """Return the ids of ada's rows, by their names in paths."""
    job_id = world.kept(deps, "of_ada", owner="ada", project_id="ada's film")
    upload_id = uuid4()
    mine.execute(
        "INSERT INTO uploads (id, owner, key, media, format, content_type, bytes, sha256)"
        " VALUES (%s, 'ada', %s, 'image', 'png', 'image/png', 1, repeat('0', 64))",
        [upload_id, f"ada/inputs/{upload_id}.png"],
    )
    ids = {"job_id": str(job_id), "render_id": str(job_id), "upload_id": str(upload_id), "project_id": "ada's%20film"}
    return {**ids, "scene": "one"}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def owner_token(front: wp.Front, owner: str, **more: Any) -> dict[str, str]:
    made = send(front, "POST", "/v1/owner-tokens", wp.BEARER, {"owner": owner, "scopes": SCOPES, **more})
    assert made.status == 201, made.fields
    return bearer(made.fields["token"])


def send(front: wp.Front, method: str, path: str, headers: dict[str, str], body: Any = None) -> wp.Answer:
    sent = None if body is None else json.dumps(body).encode()
    return front.ask(method, path, sent, {**headers, **({"content-type": "application/json"} if sent else {})})


def address(operation: Operation, ids: dict[str, str]) -> str:
    return "/v1" + re.sub(r"{(\w+)}", lambda match: ids[match.group(1)], operation.path)


def nobodys() -> dict[str, str]:
    """Return ids of no row; extend it for a path with a new kind of id."""
    fresh = str(uuid4())
    names = (
        "job_id",
        "render_id",
        "upload_id",
        "token_id",
        "erasure_id",
        "project_id",
        "dead_letter_id",
        "model",
        "output_id",
        "notification_id",
        "record",
    )
    return {**dict.fromkeys(names, fresh), "scene": "none", "owner": "nobody", "name": "nothing", "target": "nothing"}


def body_of(operation: Operation) -> dict[str, Any] | None:
    return BODIES[operation.method, operation.path] if operation.body_model else None


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_enforces_its_level(
    front: wp.Front, tokens: dict[Level, dict[str, str]], operation: Operation, level: Level
) -> None:
    """A route is only as safe as its entry in the route table."""
    # Let in, and then refused for its query: an answer without an end, and a question to providers.
    query = REFUSED.get(operation.path, "") if level >= operation.min_level else ""

    answer = front.call(
        operation.method,
        address(operation, nobodys()) + query,
        json.dumps(body_of(operation)).encode() if operation.body_model else None,
        {**tokens[level], **({"content-type": "application/json"} if operation.body_model else {})},
    )

    if level < operation.min_level:
        assert answer[0] == (401 if level is Level.OPEN else 403), answer
    elif level is Level.VIEWER and operation.method != "GET" and operation.min_level is not Level.OPEN:
        assert answer[0] == 403, answer  # it only reads
    elif operation.method == "POST" and operation.path == "/session" and level > Level.OWNER:
        assert answer[0] == 403, answer  # only an owner token becomes a cookie
    elif operation.path == "/assets/quarantine/{output_id}":
        assert answer[0] == 403, answer  # without a signed link, whatever the token
    elif operation.path in ("/jobs", "/predictions") and operation.method == "POST":
        assert answer[0] in (200, 201, 202, 422, 403), answer
    else:
        assert answer[0] not in (401, 403, 405, 500), answer


@pytest.mark.parametrize("operation", OWNED)
def test_another_owners_rows_are_not_visible(
    front: wp.Front, tokens: dict[Level, dict[str, str]], of_ada: dict[str, str], operation: Operation
) -> None:
    """Guessing an id must reveal nothing: the response equals that for an unknown id."""
    body = body_of(operation)

    theirs = send(front, operation.method, address(operation, of_ada), tokens[Level.OWNER], body)
    nothing = send(front, operation.method, address(operation, nobodys()), tokens[Level.OWNER], body)

    assert theirs.status == 404, theirs.fields
    assert {**theirs.fields, "request_id": ""} == {**nothing.fields, "request_id": ""}
    assert set(theirs.headers) == set(nothing.headers)


@pytest.mark.parametrize("operation", [p for p in OWNED if str(p.id).startswith("GET ")])
def test_own_rows_are_visible(front: wp.Front, deps: Deps, of_ada: dict[str, str], operation: Operation) -> None:
    """The test above would pass if everything was rejected."""
    shown = front.ask("GET", address(operation, of_ada), headers=owner_token(front, "ada"))

    assert shown.status == 200, shown.fields


@pytest.mark.parametrize("name", ["jobs", "renders"])
def test_lists_contain_own_rows_only(
    front: wp.Front, deps: Deps, of_ada: dict[str, str], tokens: dict[Level, dict[str, str]], name: str
) -> None:
    """A list without a filter would reveal the ids of all owners."""
    world.kept(deps, f"of_bob_{name}", owner="bob")

    own = front.ask("GET", f"/v1/{name}", headers=tokens[Level.OWNER]).fields[name]
    named = front.ask("GET", f"/v1/{name}?owner=bob", headers=tokens[Level.OWNER]).fields[name]
    other = front.ask("GET", f"/v1/{name}?owner=ada", headers=tokens[Level.OWNER])
    unknown = front.ask("GET", f"/v1/{name}?owner=nobody", headers=tokens[Level.OWNER])
    everybodys = front.ask("GET", f"/v1/{name}", headers=tokens[Level.APPLICATION]).fields[name]

    assert {row["owner"] for row in own} == {"bob"}
    assert named == own
    assert (other.status, other.fields["detail"]) == (unknown.status, unknown.fields["detail"])
    assert other.status == 403
    assert {row["owner"] for row in everybodys} >= {"ada", "bob"}


def test_a_job_for_another_owner_is_not_created(front: wp.Front, tokens: dict[Level, dict[str, str]]) -> None:
    """Bob's browser must not fill ada's list, nor spend her money."""
    entry = {"provider": "replicate", "model": "a/b", "input": {"prompt": "x"}}

    refused = send(front, "POST", "/v1/jobs", tokens[Level.OWNER], {"owner": "ada", "chain": [entry]})

    assert refused.status == 403


def test_a_page_gets_a_cookie_and_reads_with_it(front: wp.Front) -> None:
    """EventSource sends no header; a token readable by scripts could be stolen by an injected one."""
    begun = front.ask("POST", "/v1/session", headers=owner_token(front, "bob"))
    cookie = begun.headers["set-cookie"]
    sent = {"cookie": f"theme=dark; {cookie.split(';')[0]}"}

    who = front.ask("GET", "/v1/session", headers=sent)
    ended = front.ask("DELETE", "/v1/session", headers={**sent, "sec-fetch-site": "same-origin"})

    assert (begun.status, ended.status) == (204, 204)
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert (who.fields["level"], who.fields["owner"]) == ("owner", "bob")
    assert "Max-Age=0" in ended.headers["set-cookie"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "none"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"origin": "https://evil.example", "sec-fetch-site": "same-origin"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 404),  # PUBLIC_URL
        ({"origin": "http://moorage.example", "host": "moorage.example"}, 404),
        ({"sec-fetch-site": "same-origin"}, 404),
    ],
)
def test_a_session_can_change_data_from_the_same_origin_only(
    front: wp.Front, headers: dict[str, str], status: int
) -> None:
    """Browsers send the cookie with requests of any page; 404 here means authorized, and no such render."""
    begun = front.ask("POST", "/v1/session", headers=owner_token(front, "bob"))
    sent = {"cookie": begun.headers["set-cookie"].split(";")[0], **headers}

    assert front.ask("DELETE", f"/v1/renders/{uuid4()}", headers=sent).status == status


@pytest.mark.parametrize("wrong", ["mro_", "mro_AAAA", "mro_" + "A" * 90, "mro_é", "mrt_nobody", "mrt_"])
def test_forged_tokens_are_rejected(front: wp.Front, wrong: str) -> None:
    """Neither in the header nor in the cookie; and never with a 500."""
    by_header = front.call("GET", "/v1/jobs", headers={"authorization": f"Bearer {wrong}"})
    by_cookie = front.call("GET", "/v1/jobs", headers={"cookie": f"moorage={wrong}"})

    assert (by_header[0], by_cookie[0]) == (401, 401)


def test_an_application_token_is_rejected_as_a_cookie(front: wp.Front, mine: Connection) -> None:
    """A browser must never hold more than temporary access to one owner's rows."""
    _, token = api_tokens.create(mine, "in a cookie", "application")

    assert front.call("GET", "/v1/jobs", headers={"cookie": f"moorage={token}"})[0] == 401
    assert front.call("GET", "/v1/jobs", headers={"cookie": f"moorage={wp.TOKEN}"})[0] == 401


def test_an_owner_token_expires(front: wp.Front) -> None:
    """A link that was passed on must not give access forever."""
    token = owner_token(front, "bob", seconds=4)
    before = front.ask("GET", "/v1/jobs", headers=token).status

    end = time.monotonic() + 60
    while (answer := front.ask("GET", "/v1/jobs", headers=token)).status == 200 and time.monotonic() < end:
        time.sleep(0.05)

    assert (before, answer.status) == (200, 401)
    assert "expired" in answer.fields["detail"]


def test_a_token_is_created_shown_once_and_revoked(front: wp.Front, mine: Connection) -> None:
    """The stored value must not authenticate; neither must a revoked token."""
    made = send(front, "POST", "/v1/tokens", wp.BEARER, {"name": "shop", "role": "application"})
    token = made.fields["token"]
    before = front.ask("GET", "/v1/jobs", headers=bearer(token)).status

    listed = front.get("/v1/tokens")
    revoked = front.ask("DELETE", f"/v1/tokens/{made.fields['token_id']}", headers=wp.BEARER).status
    after = front.ask("GET", "/v1/jobs", headers=bearer(token)).status
    again = front.ask("DELETE", f"/v1/tokens/{made.fields['token_id']}", headers=wp.BEARER).status

    assert (made.status, before, revoked, after, again) == (201, 200, 204, 401, 404)
    assert token not in json.dumps(listed.fields)
    row = mine.execute("SELECT * FROM api_tokens WHERE id = %s", [UUID(made.fields["token_id"])]).fetchone()
    assert token not in str(row)


@pytest.mark.parametrize("path", sorted({operation.path for operation in routes.OPERATIONS}))
def test_a_method_that_is_not_described_is_refused(
    front: wp.Front, tokens: dict[Level, dict[str, str]], path: str
) -> None:
    """With the methods of the path, of an action such as /jobs/cancel not those of an id in its place."""
    described = {operation.method for operation in routes.OPERATIONS if operation.path == path}
    described |= {"HEAD"} if "GET" in described else set()
    operation = next(operation for operation in routes.OPERATIONS if operation.path == path)

    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - described:
        status, headers, _ = front.call(method, address(operation, nobodys()), None, tokens[Level.ADMIN])
        assert (status, set(headers["allow"].split(", "))) == (405, described), method
