"""Owner tokens: what each scope permits, revocation, models, and whose session a link may replace."""

import json
from typing import Any, Final
from uuid import uuid4

import pytest

from db.connection import Connection
from moorage.owner_tokens import SCOPES
from tests.integration import web_process as wp
from tests.integration.test_web_access import BODIES, address, nobodys
from tests.support import operations as routes
from web.http.permissions import Level, find_scope

JSON: Final = {"content-type": "application/json"}
OPERATIONS: Final = [o for o in routes.OPERATIONS if o.min_level is Level.OWNER and o.path != "/events"]


def create(front: wp.Front, owner: str = "bob", **more: Any) -> dict[str, Any]:
    body = json.dumps({"owner": owner, **more}).encode()
    made = front.ask("POST", "/v1/owner-tokens", body, {**wp.BEARER, **JSON})
    assert made.status == 201, made.fields
    return made.fields


def headers(front: wp.Front, owner: str = "bob", **more: Any) -> dict[str, str]:
    return {"authorization": f"Bearer {create(front, owner, **more)['token']}"}


@pytest.mark.parametrize("scope", SCOPES)
def test_a_token_does_what_its_scopes_permit_and_nothing_else(front: wp.Front, scope: str) -> None:
    """A page that shows files need not be able to delete them, or to spend money."""
    bearer = headers(front, scopes=[scope])

    for operation in OPERATIONS:
        needed = find_scope(operation.method, f"/v1{operation.path}")
        body = json.dumps(BODIES[operation.method, operation.path]).encode() if operation.body_model else None
        answer = front.ask(operation.method, address(operation, nobodys()), body, {**bearer, **JSON})
        is_refused = answer.status == 403 and "scope" in answer.fields["detail"]
        assert is_refused == (needed not in ("read", scope)), (operation, needed, answer)


def test_a_token_reads_only_by_default(front: wp.Front) -> None:
    """Whoever does not ask gets the least."""
    made = create(front)
    session = front.ask("GET", "/v1/session", None, {"authorization": f"Bearer {made['token']}"}).fields

    assert made["scopes"] == session["scopes"] == ["read"]
    assert create(front, scopes=["delete", "jobs"])["scopes"] == ["read", "jobs", "delete"]
    assert front.ask("GET", "/v1/session", None, wp.BEARER).fields["scopes"] is None
    refused = front.ask("POST", "/v1/owner-tokens", b'{"owner": "bob", "scopes": ["all"]}', {**wp.BEARER, **JSON})
    assert (refused.status, refused.fields["errors"][0]["field"]) == (422, "scopes[0]")


def test_a_job_with_files_needs_the_scope_of_uploads(front: wp.Front) -> None:
    """They become uploads."""
    form = {"content-type": "multipart/form-data; boundary=x"}
    body = b'--x\r\nContent-Disposition: form-data; name="job"\r\n\r\n{}\r\n--x--\r\n'

    assert front.ask("POST", "/v1/jobs", body, {**headers(front, scopes=["jobs"]), **form}).status == 403
    assert front.ask("POST", "/v1/jobs", body, {**headers(front, scopes=["jobs", "upload"]), **form}).status == 422


def test_one_token_or_all_of_an_owner_are_revoked(front: wp.Front, mine: Connection) -> None:
    """A token that a browser lost was valid for up to a day."""
    one, other = create(front, "ada"), create(front, "ada")
    of_bob = headers(front)

    def status(made: dict[str, Any]) -> int:
        return front.call("GET", "/v1/jobs", None, {"authorization": f"Bearer {made['token']}"})[0]

    assert front.ask("DELETE", f"/v1/owner-tokens/{one['token_id']}", None, wp.BEARER).status == 204
    assert (status(one), status(other)) == (401, 200)
    assert front.ask("DELETE", "/v1/owner-tokens?owner=ada", None, wp.BEARER).status == 204
    assert (status(other), status(create(front, "ada"))) == (401, 200)
    assert front.ask("GET", "/v1/jobs", None, of_bob).status == 200
    assert front.ask("DELETE", "/v1/owner-tokens?owner=bob", None, of_bob).status == 403
    assert front.ask("DELETE", "/v1/owner-tokens", None, wp.BEARER).status == 422
    rows = mine.execute("SELECT * FROM owner_token_revocations").fetchall()
    assert "ada" not in str(rows)


def test_revocations_are_deleted_when_their_tokens_have_expired(front: wp.Front, mine: Connection) -> None:
    """The table must not grow with every sign-out."""
    old = f"token:{uuid4()}"
    mine.execute("INSERT INTO owner_token_revocations VALUES (%s, 'epoch', moment() - interval '25 hours')", [old])

    front.ask("DELETE", f"/v1/owner-tokens/{uuid4()}", None, wp.BEARER)

    assert not mine.execute("SELECT FROM owner_token_revocations WHERE subject = %s", [old]).fetchall()


def test_owners_use_only_the_models_that_are_offered(url: str) -> None:
    """A page's token could start any model of a provider, at any price."""
    settings = {"REPLICATE_API_TOKEN": "r8_" + "x" * 30, "REPLICATE_API_URL": "http://127.0.0.1:9"}
    given = {**settings, "MOORAGE_EGRESS_ALLOW": "127.0.0.1:9", "REPLICATE_MODELS": "acme/offered"}
    with wp.running(url, **given) as front:

        def order(model: str, bearer: dict[str, str]) -> wp.Answer:
            chain = [{"provider": "replicate", "model": model, "input": {"prompt": "a boat"}}]
            body = json.dumps({"owner": "bob", "chain": chain}).encode()
            return front.ask("POST", "/v1/jobs", body, {**bearer, **JSON})

        bob = headers(front, scopes=["jobs"])
        refused = [order(model, bob) for model in ("acme/other", "acme/offered:" + "0" * 64, "0" * 64)]

        assert [(x.status, x.fields["errors"][0]["field"]) for x in refused] == [(422, "chain[0].model")] * 3
        assert order("acme/offered", bob).status == 202
        assert order("acme/other", wp.BEARER).status == 202


def test_a_link_does_not_replace_the_session_of_another_owner(front: wp.Front) -> None:
    """Whoever follows a stranger's link would upload and generate into the stranger's account."""
    ada, bob = headers(front, "ada"), headers(front, "bob")
    begun = front.ask("POST", "/v1/session", None, ada)
    cookie = {"cookie": begun.headers["set-cookie"].split(";")[0]}

    refused = front.ask("POST", "/v1/session", None, {**bob, **cookie})
    replaced = front.ask("POST", "/v1/session?replace=true", None, {**bob, **cookie})

    assert (refused.status, "set-cookie" in refused.headers) == (409, False)
    assert (replaced.status, "set-cookie" in replaced.headers) == (204, True)
    assert front.ask("POST", "/v1/session", None, {**headers(front, "ada"), **cookie}).status == 204
    assert front.ask("POST", "/v1/session", None, {**bob, "cookie": "moorage=expired"}).status == 204


def test_the_page_offers_what_its_token_may_do(front: wp.Front) -> None:
    """A button that is refused is worse than none."""
    job_id = front.register(external_id="page_scopes", owner="carl").fields["job_id"]
    sessions = {}
    for scope in ("read", "jobs"):
        begun = front.ask("POST", "/v1/session", None, headers(front, "carl", scopes=[scope]))
        sessions[scope] = {"cookie": begun.headers["set-cookie"].split(";")[0], "sec-fetch-site": "same-origin"}

    pages = {scope: front.call("GET", "/", None, session)[2].decode() for scope, session in sessions.items()}

    assert f"/page/jobs/{job_id}/cancel" in pages["jobs"]
    assert f'id="job-{job_id}"' in pages["read"]
    assert 'action="/page/jobs' not in pages["read"]
    assert front.call("POST", f"/page/jobs/{job_id}/cancel", b"", sessions["read"])[0] == 403


@pytest.mark.parametrize("project", ["session", "uploads", "delete"])
def test_the_name_of_a_project_gives_no_scope(front: wp.Front, project: str) -> None:
    """Scopes depend on the operation, not on what a path happens to end with."""
    bearer = {**headers(front, scopes=["read", "upload"]), **JSON}
    path = f"/v1/projects/{project}"

    answers = [
        front.ask("PUT", path, b'{"document": {}}', bearer),
        front.ask("DELETE", path, None, bearer),
        front.ask("DELETE", f"{path}/scenes/session", None, bearer),
    ]

    assert [(a.status, "scope" in a.fields["detail"]) for a in answers] == [(403, True)] * 3
    assert front.ask("PUT", path, b'{"document": {}}', {**headers(front, scopes=["jobs"]), **JSON}).status == 201
