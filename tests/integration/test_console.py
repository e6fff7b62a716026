"""The console over HTTP: who may see and do what, and what is never shown."""

import json
import re
from typing import Any
from urllib.parse import urlencode

import pytest

from db import api_tokens
from db.connection import Connection
from moorage.provider_types import OutputFile
from moorage.retry_policy import DeadLetterDecision
from tests.integration import receiver_process as rp
from tests.integration import web_process as wp
from tests.integration.test_web_reads import end, hear

NOBODY = "0198a000-0000-7000-8000-000000000000"
OWN = {"sec-fetch-site": "same-origin"}
FORM = {"content-type": "application/x-www-form-urlencoded", **OWN}
GONE = DeadLetterDecision("DOWNLOAD_FAILED", "OutputGone", "404 <b>Not Found</b>", retryable=True)
PAGES = (
    "/ops", "/ops/dead-letters", "/ops/jobs", "/ops/predictions", "/ops/deliveries", "/ops/outputs",
    "/ops/notifications", "/ops/workers", "/ops/sweeps", "/ops/pauses", "/ops/recover", "/ops/runbook",
)  # fmt: skip


def sign_in(front: wp.Front, token: str, target: str = "", **headers: str) -> rp.Reply:
    body = urlencode({"token": token, "next": target}).encode()
    return front.call("POST", "/ops/sign-in", body, {**FORM, **headers})


def session(front: wp.Front, token: str = wp.TOKEN) -> dict[str, str]:
    status, headers, body = sign_in(front, token)
    assert status == 303, body
    return {"cookie": headers["set-cookie"].split(";")[0]}


def read(front: wp.Front, path: str, cookie: dict[str, str]) -> str:
    status, headers, body = front.call("GET", path, None, cookie)
    assert status == 200, body
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
    return body.decode()


def post(front: wp.Front, path: str, cookie: dict[str, str], **fields: Any) -> rp.Reply:
    return front.call("POST", path, urlencode(fields, doseq=True).encode(), {**FORM, **cookie})


def dead_output(front: wp.Front, mine: Connection, external_id: str, **asked: object) -> dict[str, Any]:
    """Return the dead letter of a job with one file that could not be kept."""
    made = front.register(external_id=external_id, **asked)
    hear(mine, made, OutputFile("output[0]", "https://replicate.delivery/a.png?sig=url-secret"))
    end(mine, made, 0, GONE)
    return mine.execute("SELECT * FROM dead_letters WHERE job_id = %s", [made.fields["job_id"]]).fetchone() or {}


@pytest.mark.parametrize("path", [*PAGES, f"/ops/show/{NOBODY}", "/ops/find?id=abc", "/ops/events"])
def test_without_a_session_every_page_is_the_one_to_sign_in(front: wp.Front, path: str) -> None:
    """It leads back to the page that was asked for."""
    status, _, body = front.call("GET", path)

    assert status == 200
    assert 'type="password"' in body.decode()
    assert f'name="next" value="{path}"' in body.decode()
    assert "<nav" not in body.decode()


def test_a_session_is_a_cookie_that_scripts_and_the_api_cannot_use(front: wp.Front) -> None:
    """The token of an operator can do anything."""
    status, headers, _ = sign_in(front, wp.TOKEN, "/ops/jobs?state=failed")
    cookie = headers["set-cookie"]

    assert (status, headers["location"]) == (303, "/ops/jobs?state=failed")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert wp.TOKEN not in cookie
    assert front.call("GET", "/v1/jobs", None, {"cookie": cookie.split(";")[0]})[0] == 401
    assert sign_in(front, wp.TOKEN, "https://evil.example/ops")[1]["location"] == "/ops"
    assert sign_in(front, wp.TOKEN, "//evil.example")[1]["location"] == "/ops"


def test_wrong_tokens_and_other_sites_do_not_sign_in(front: wp.Front, mine: Connection) -> None:
    """Neither may an application's token, which is on many servers."""
    application = api_tokens.create(mine, "shop", "application")[1]

    refused = [sign_in(front, token) for token in ("", "wrong", application, "ü", "a;b")]
    foreign = sign_in(front, wp.TOKEN, **{"sec-fetch-site": "cross-site"})

    assert [status for status, *_ in refused] == [401] * 5
    assert all("set-cookie" not in headers for _, headers, _ in [*refused, foreign])
    assert foreign[0] == 403
    for forged in ("moorage-ops=nonsense", "moorage-ops=é", f"moorage-ops={wp.TOKEN}"):
        assert 'type="password"' in front.call("GET", "/ops", None, {"cookie": forged})[2].decode()


def test_a_revoked_token_ends_its_session_and_signing_out_removes_the_cookie(front: wp.Front, mine: Connection) -> None:
    """Twelve hours would be long after somebody left."""
    row, token = api_tokens.create(mine, "chief", "admin")
    cookie = session(front, token)
    before = read(front, "/ops/jobs", cookie)
    api_tokens.revoke(mine, row["id"])

    after = read(front, "/ops/jobs", cookie)
    out = post(front, "/ops/sign-out", session(front))

    assert "<nav" in before
    assert "<nav" not in after
    assert (out[0], "Max-Age=0" in out[1]["set-cookie"]) == (303, True)


@pytest.mark.parametrize("headers", [{}, {"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}])
def test_a_form_of_another_site_does_nothing(front: wp.Front, headers: dict[str, str]) -> None:
    """Browsers send cookies with requests that any page makes."""
    form = {"content-type": FORM["content-type"], **session(front), **headers}

    answer = front.call("POST", "/ops/pauses", urlencode({"target": "replicate", "reason": "x"}).encode(), form)

    assert answer[0] == 403
    assert "is paused" not in read(front, "/ops/jobs", session(front))


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_shown_and_contains_no_secret(front: wp.Front, mine: Connection, path: str) -> None:
    """Neither of the settings nor of a URL."""
    dead_output(front, mine, f"page {path}", prompt='<script>alert("x")</script>', owner="<b>ada</b>")

    text = read(front, path, session(front))

    assert "<nav" in text
    for secret in (wp.TOKEN, rp.SECRET, "url-secret", "password@"):
        assert secret not in text
    assert "<script>alert" not in text
    assert "<b>" not in re.sub(r"<b>[\d.]+</b>|<b>keep</b>", "", text)


def test_a_record_is_shown_with_its_history(front: wp.Front, mine: Connection) -> None:
    """By id or the beginning of one, and by the provider's id."""
    letter = dead_output(front, mine, "shown", prompt="a boat")
    cookie = session(front)

    job = read(front, f"/ops/show/{letter['job_id']}", cookie)
    found = [
        front.call("GET", f"/ops/find?{urlencode({'id': name})}", None, cookie)[1].get("location", "")
        for name in (str(letter["id"]), f" {letter['job_id']} ", "shown")
    ]
    nothing = read(front, "/ops/find?id=nothing", cookie)

    assert "a boat" in job
    assert "404 &lt;b&gt;Not Found&lt;/b&gt;" in job
    assert re.search(r"waiting → <b>dead</b>", job)
    assert re.search(r'class="since">\+\d+ ms', job)
    assert found[:2] == [f"/ops/show/{letter['id']}", f"/ops/show/{letter['job_id']}"]
    assert found[2].startswith("/ops/show/")
    assert "No record matches nothing" in nothing
    assert front.call("GET", f"/ops/show/{NOBODY}", None, cookie)[0] == 404
    assert front.call("GET", "/ops/show/1", None, cookie)[0] == 404


def test_a_webhook_is_shown_without_secrets(front: wp.Front, mine: Connection) -> None:
    """Its body has URLs that are keys, and whatever else the provider puts into it."""
    body = {
        "id": "redacted", "status": "processing", "api_token": "body-secret",
        "nested": [{"Authorization": "body-secret"}],
        "output": ["https://replicate.delivery/a.png?sig=body-secret", "data:image/png;base64," + "A" * 5000],
    }  # fmt: skip
    assert front.post(json.dumps(body).encode(), webhook_id="msg_redacted")[0] == 202
    row = mine.execute("SELECT id FROM deliveries WHERE webhook_id = 'msg_redacted'").fetchone() or {}

    text = read(front, f"/ops/show/{row['id']}", session(front))

    assert "https://replicate.delivery/a.png" in text
    assert "msg_redacted" in text
    assert "body-secret" not in text
    assert "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" not in text
    assert "webhook-timestamp" in text


def test_a_list_is_filtered_by_its_url_and_goes_on(front: wp.Front, mine: Connection) -> None:
    """A filter can be sent to a colleague."""
    for number in range(52):
        front.register(external_id=f"long {number}", owner="long")
    cookie = session(front)

    first = read(front, "/ops/jobs?owner=long&state=open&hours=1", cookie)
    (older,) = re.findall(r'href="(/ops/jobs\?[^"]*before[^"]*)"', first)
    second = read(front, older.replace("&amp;", "&"), cookie)
    none = read(front, "/ops/jobs?owner=long&state=failed", cookie)

    assert (first.count('class="id"'), second.count('class="id"')) == (50, 2)
    assert "Nothing matches" in none
    assert front.call("GET", "/ops/jobs?before=1", None, cookie)[0] == 404
    assert front.call("GET", "/ops/jobs?owner=%00", None, cookie)[0] == 404
    assert front.call("GET", "/ops/jobs?utm_source=mail", None, cookie)[0] == 200
