"""The console over HTTP: who may see and do what, and what is never shown."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from db import api_tokens
from db.connection import Connection
from moorage.provider_types import OutputFile
from moorage.retry_policy import DeadLetterDecision
from moorage.settings import env_names_by_field
from tests.integration import receiver_process as rp
from tests.integration import web_process as wp
from tests.integration.test_web_reads import end, hear
from tests.integration.test_web_secrets import DRAWN

NOBODY = "0198a000-0000-7000-8000-000000000000"
OWN = {"sec-fetch-site": "same-origin"}
FORM = {"content-type": "application/x-www-form-urlencoded", **OWN}
GONE = DeadLetterDecision("DOWNLOAD_FAILED", "OutputGone", "404 <b>Not Found</b>", retryable=True)
PAGES = (
    "/ops", "/ops/dead-letters", "/ops/jobs", "/ops/predictions", "/ops/deliveries", "/ops/outputs",
    "/ops/notifications", "/ops/workers", "/ops/sweeps", "/ops/pauses", "/ops/recover", "/ops/runbook",
)  # fmt: skip


@pytest.fixture(scope="module")
def front(url: str) -> Iterator[wp.Front]:
    """Run the API with every secret of the settings drawn, so that a page that shows one is found."""
    given = {env_names_by_field()[name][0]: value for name, value in DRAWN.items()}
    own = {"MOORAGE_API_TOKEN": wp.TOKEN, "ASSET_BASE_URL": wp.BASE, "REPLICATE_WEBHOOK_SECRET": rp.SECRET}
    with wp.running(url, **{**given, **own}) as process:
        yield process


@pytest.fixture(scope="module")
def hidden(url: str) -> set[str]:
    """Return what no page may show: secrets, and of URLs all but the host."""
    texts = {wp.TOKEN, rp.SECRET, "url-secret", urlsplit(url).password or "url-secret"}
    for name, value in DRAWN.items():
        if name == "s3_endpoint_url":  # operators read which server does not answer
            continue
        texts |= {*re.split("[/?&=#]+", value.partition(":8443")[2])} if name.endswith("_url") else {value}
    return {text for text in texts if len(text) >= 8}


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
    unreadable = sign_in(front, wp.TOKEN, origin="http://[")

    assert [status for status, *_ in refused] == [401] * 5
    assert all("set-cookie" not in headers for _, headers, _ in [*refused, foreign, unreadable])
    assert (foreign[0], unreadable[0]) == (403, 403)
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
def test_every_page_is_shown_and_contains_no_secret(
    front: wp.Front, mine: Connection, hidden: set[str], path: str
) -> None:
    """Neither of the settings nor of a URL, whatever fails; and no text of others becomes markup."""
    dead_output(front, mine, f"page {path}", prompt='<script>alert("x")</script>', owner="<b>ada</b>")

    text = read(front, path, session(front))

    assert "<nav" in text
    assert [secret for secret in hidden if secret in text] == []
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


def test_a_webhook_with_a_lone_surrogate_is_shown(front: wp.Front, mine: Connection) -> None:
    """It is valid JSON, and UTF-8 has no bytes for it."""
    body = rb'{"id": "surrogate", "status": "processing", "x\udfff": "\ud800 \ud83d\ude00", "output": null}'
    assert front.post(body, webhook_id="msg_surrogate")[0] == 202
    row = mine.execute("SELECT id FROM deliveries WHERE webhook_id = 'msg_surrogate'").fetchone() or {}

    text = read(front, f"/ops/show/{row['id']}", session(front))

    assert r"x\udfff&#34;: &#34;\ud800 😀&#34;" in text


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


def test_a_viewer_sees_everything_and_changes_nothing(front: wp.Front, mine: Connection) -> None:
    """Who watches at night need not be able to discard what was lost."""
    letter = dead_output(front, mine, "viewed")
    cookie = session(front, api_tokens.create(mine, "watch", "viewer")[1])

    pages = [read(front, path, cookie) for path in ("/ops/dead-letters", "/ops/pauses", f"/ops/show/{letter['id']}")]
    forms = {
        "/ops/dead-letters/plan": {"plan": "discard-selected", "id": letter["id"]},
        "/ops/dead-letters/discard": {"id": letter["id"]},
        "/ops/pauses": {"target": "replicate", "reason": "x"},
        "/ops/pauses/resume": {"target": "replicate"},
        "/ops/recover": {"provider": "replicate", "hours": 1},
        f"/ops/notifications/{NOBODY}/resend": {},
    }
    answers = {path: post(front, path, cookie, **fields)[0] for path, fields in forms.items()}

    assert all(re.findall(r'<form[^>]*method="post"[^>]*action="([^"]*)"', page) == ["/ops/sign-out"] for page in pages)
    assert answers == dict.fromkeys(forms, 403)


def test_a_viewer_is_given_no_link_to_a_file_in_quarantine(front: wp.Front, mine: Connection) -> None:
    """As in the API: it is whatever a provider sent, of any owner."""
    output_id = dead_output(front, mine, "quarantined")["subject_id"]
    mine.execute(
        "UPDATE outputs SET quarantine_key = 'quarantine/x', quarantine_bytes = 5, quarantined_at = moment(),"
        " quarantine_sha256 = repeat('0', 64) WHERE id = %s",
        [output_id],
    )
    watcher = session(front, api_tokens.create(mine, "night watch", "viewer")[1])

    admins, viewers = (read(front, f"/ops/show/{output_id}", cookie) for cookie in (session(front), watcher))

    assert f"/v1/assets/quarantine/{output_id}?" in admins
    assert "/v1/assets/quarantine/" not in viewers
    assert "in quarantine since" in viewers


def test_a_replay_is_planned_counted_and_bounded_by_its_plan(front: wp.Front, mine: Connection) -> None:
    """What fails again, or arrives meanwhile, is not replayed in a circle; each row has its event."""
    mine.execute("DELETE FROM dead_letters")
    letters = [dead_output(front, mine, f"planned {n}", owner="plan") for n in range(3)]
    cookie = session(front, api_tokens.create(mine, "night shift", "admin")[1])

    status, _, body = post(front, "/ops/dead-letters/plan", cookie, plan="replay-all", category="DOWNLOAD_FAILED")
    plan = body.decode()
    late = dead_output(front, mine, "late", owner="plan")
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', plan))
    answer = post(front, "/ops/dead-letters/replay", cookie, **fields)

    assert (status, "3 dead letters" in plan) == (200, True)
    assert (answer[0], answer[1]["location"]) == (303, "/ops/dead-letters?result=3+replayed")
    states = mine.execute("SELECT id, state, closed_by FROM dead_letters").fetchall()
    assert {row["id"]: (row["state"], row["closed_by"]) for row in states} == {
        **{letter["id"]: ("replayed", "console night shift") for letter in letters}, late["id"]: ("open", None),
    }  # fmt: skip
    again = post(front, "/ops/dead-letters/replay", cookie, **fields)
    assert again[1]["location"] == "/ops/dead-letters?result=0+replayed"


def test_some_are_chosen_by_id(front: wp.Front, mine: Connection) -> None:
    """And only those; none is chosen by nothing."""
    mine.execute("DELETE FROM dead_letters")
    first, second, third = (dead_output(front, mine, f"chosen {n}")["id"] for n in range(3))
    cookie = session(front)

    nothing = post(front, "/ops/dead-letters/plan", cookie, plan="discard-selected")[2].decode()
    plan = post(front, "/ops/dead-letters/plan", cookie, plan="discard-selected", id=[first, third])[2].decode()
    fields = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', plan)
    named = {name: [value for key, value in fields if key == name] for name, _ in fields}
    answer = post(front, "/ops/dead-letters/discard", cookie, **named)

    assert "Nothing is selected" in nothing
    assert "2 dead letters" in plan
    assert answer[1]["location"] == "/ops/dead-letters?result=2+discarded"
    opened = mine.execute("SELECT id FROM dead_letters WHERE state = 'open'").fetchall()
    assert [row["id"] for row in opened] == [second]


def test_an_action_on_many_rows_takes_several_requests(front: wp.Front, mine: Connection) -> None:
    """Each is short; the page that says how far it is goes on by itself."""
    mine.execute("DELETE FROM dead_letters")
    first = dead_output(front, mine, "many")
    columns = "subject, job_id, provider, step, category, error, reason, retryable"
    mine.execute(
        f"INSERT INTO dead_letters (id, subject_id, {columns}) SELECT gen_random_uuid(), gen_random_uuid(), {columns}"
        " FROM dead_letters, generate_series(1, 149) WHERE id = %s", [first["id"]],
    )  # fmt: skip
    cookie = session(front)
    plan = post(front, "/ops/dead-letters/plan", cookie, plan="acknowledge-all")[2].decode()

    requests, page = 0, plan
    while "<form" in page and requests < 10:
        fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))
        status, headers, body = post(front, "/ops/dead-letters/acknowledge", cookie, **{"note": "known", **fields})
        requests, page = requests + 1, body.decode() if status == 200 else ""
        if status == 200:
            assert re.search(r"\d+ of 150 acknowledged", page)

    assert requests >= 2
    assert headers["location"] == "/ops/dead-letters?result=150+acknowledged"
    assert "150 acknowledged" in read(front, "/ops/dead-letters", cookie)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("dead-letters/plan", {}),
        ("dead-letters/plan", {"plan": "drop-all"}),
        ("dead-letters/plan", {"plan": "replay-all", "until": "x"}),
        ("dead-letters/plan", {"plan": "replay-selected", "id": "x"}),
        ("dead-letters/discard", {"category": "POISON"}),  # without a plan
        ("dead-letters/discard", {"until": "2026-01-01T00:00:00Z", "done": "-1"}),
        ("recover", {"provider": "nobody", "hours": 1}),
        ("recover", {"provider": "replicate", "hours": "x"}),
        ("recover", {"provider": "replicate"}),
        ("pauses", {f"field{n}": n for n in range(2000)}),
    ],
)
def test_a_form_that_no_page_has_is_refused(front: wp.Front, path: str, fields: dict[str, Any]) -> None:
    """With a page, not a traceback."""
    status, _, body = post(front, f"/ops/{path}", session(front), **fields)

    assert status == 422
    assert b"<nav" in body or b'class="result bad"' in body


def test_a_pause_has_a_banner_and_an_event(front: wp.Front, mine: Connection) -> None:
    """Everybody sees it, and who did it."""
    cookie = session(front, api_tokens.create(mine, "day shift", "admin")[1])

    begun = post(front, "/ops/pauses", cookie, target="fal", reason="their <incident>")
    banner = read(front, "/ops/jobs", cookie)
    ended = post(front, "/ops/pauses/resume", cookie, target="fal")
    unknown = post(front, "/ops/pauses", cookie, target="nobody", reason="x")

    assert (begun[0], ended[0], unknown[0]) == (303, 303, 422)
    assert "fal is paused" in banner
    assert "console day shift: their &lt;incident&gt;" in banner
    events = mine.execute("SELECT to_state, actor FROM events WHERE subject = 'pause' ORDER BY id").fetchall()
    assert [(row["to_state"], row["actor"]) for row in events] == [
        ("paused", "console day shift"), ("resumed", "console day shift"),
    ]  # fmt: skip


def test_without_postgresql_the_overview_says_so() -> None:
    """Then above all an operator opens it; MOORAGE_API_TOKEN needs no row."""
    with wp.running("postgresql://moorage@127.0.0.1:1/none") as away:
        cookie = session(away)

        overview, workers = (read(away, path, cookie) for path in ("/ops", "/ops/workers"))
        jobs = away.call("GET", "/ops/jobs", None, cookie)

    assert "PostgreSQL is unavailable" in overview
    assert "No row is held" in workers
    assert jobs[0] == 503
    assert b"database unavailable" in jobs[2]
    assert b"<h1>" in jobs[2]
