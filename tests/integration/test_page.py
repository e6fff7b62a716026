"""The page at `/` over HTTP: what an owner sees, and nobody else."""

import json
from urllib.parse import urlencode

from db.connect import Connection
from moorage.exchange import Found
from moorage.lifecycle import GiveUp
from tests.integration import web_process as wp
from tests.integration.test_web_reads import end, hear

SCRIPT = '<script>alert("ours")</script> & "co"'
GONE = GiveUp("DOWNLOAD_FAILED", "OutputGone", "404 Not Found", retryable=True)


def cookie(front: wp.Front, owner: str) -> dict[str, str]:
    """Return the header with which an owner's browser comes, after the link of the application."""
    asked = json.dumps({"owner": owner}).encode()
    made = front.ask("POST", "/v1/owner-tokens", asked, {**wp.BEARER, "content-type": "application/json"})
    begun = front.call("POST", "/v1/session", b"", {"authorization": f"Bearer {made.fields['token']}"})
    assert begun[0] == 204
    return {"cookie": begun[1]["set-cookie"].split(";")[0]}


def read(front: wp.Front, owner: str, path: str = "/", **headers: str) -> str:
    status, _, body = front.call("GET", path, None, {**cookie(front, owner), **headers})
    assert status == 200, body
    return body.decode()


def published(front: wp.Front, mine: Connection, external_id: str, owner: str, dead: int = 0, **asked: object) -> str:
    """Make a job with one kept file, and some that died; returns its id."""
    made = front.register(external_id=external_id, owner=owner, **asked)
    found = [Found(f"output[{n}]", f"https://replicate.delivery/{n}.png") for n in range(1 + dead)]
    hear(mine, made, *found)
    end(mine, made, 0)
    for n in range(dead):
        end(mine, made, 1 + n, GONE)
    return str(made.fields["job_id"])


def test_without_a_session_it_tells_how_to_get_one(front: wp.Front) -> None:
    """A bare address must not answer with a riddle, nor with anybody's pictures."""
    status, headers, body = front.call("GET", "/")

    assert status == 200
    assert "link" in body.decode()
    assert "grid" not in body.decode()
    assert "'none'" in headers["content-security-policy"]
    assert front.call("GET", "/", None, {"cookie": "moorage=nonsense"})[2] == body


def test_it_loads_nothing_but_its_own_files_and_the_kept_ones(front: wp.Front, mine: Connection) -> None:
    """A prompt is foreign text: it must not become markup, and could run nothing if it did."""
    job_id = published(front, mine, "page_xss", "xss", prompt=SCRIPT, style=SCRIPT)

    status, headers, body = front.call("GET", "/", None, cookie(front, "xss"))

    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert status == 200
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["img-src"] == "'self' https://cdn.example"
    assert headers["cache-control"] == "no-store"
    assert SCRIPT not in body.decode()
    assert "&lt;script&gt;" in body.decode()
    assert f"{wp.BASE}/renders/{job_id}/0_thumb.webp" in body.decode()
    assert "#102030" in body.decode()
    for name, kind in (("page.js", "text/javascript"), ("page.css", "text/css"), ("icon.svg", "image/svg+xml")):
        answer = front.call("GET", f"/page/{name}")
        assert (answer[0], answer[1]["content-type"].split(";")[0]) == (200, kind)
    assert front.call("GET", "/page/serving.py")[0] == 404
    assert front.call("GET", "/page/..%2fcards.py")[0] == 404


def test_an_owner_sees_only_its_own(front: wp.Front, mine: Connection) -> None:
    """Neither in the list nor by the id."""
    job_id = published(front, mine, "page_ada", "ada", prompt="of ada")
    published(front, mine, "page_bob", "bob", prompt="of bob")

    assert "of ada" in read(front, "ada")
    assert "of ada" not in read(front, "bob")
    assert "of ada" in read(front, "ada", f"/page/jobs/{job_id}")
    theirs = front.call("GET", f"/page/jobs/{job_id}", None, cookie(front, "bob"))
    nobody = front.call("GET", "/page/jobs/0198a000-0000-7000-8000-000000000000", None, cookie(front, "bob"))
    assert theirs[0] == nobody[0] == 404
    assert theirs[2] == nobody[2]
    assert front.call("GET", f"/page/jobs/{job_id}")[0] == 401


def test_every_state_is_told_as_it_is(front: wp.Front, mine: Connection) -> None:
    """What failed says why, what is being kept says how far it is."""
    front.register(external_id="s_waiting", owner="states", prompt="waits")
    published(front, mine, "s_partial", "states", dead=1, prompt="half")
    keeping = front.register(external_id="s_keeping", owner="states", prompt="keeps")
    hear(mine, keeping, *(Found(f"output[{n}]", f"https://replicate.delivery/{n}.png") for n in range(3)))
    end(mine, keeping, 0)
    failed = front.register(external_id="s_failed", owner="states", prompt="fails")
    hear(mine, failed, status="failed")

    page = read(front, "states")

    assert page.count('class="card ') == 4
    for told in ("Waiting", "Sent to replicate", "Partial: 1 of 2", "404 Not Found", "Keeping 1 of 3", "Out of memory"):
        assert told in page
    assert '<progress max="3" value="1"' in page
    failures = read(front, "states", "/?state=failed&kind=")
    assert "Out of memory" in failures
    assert failures.count('class="card ') == 1
    card = f"/page/jobs/{failed.fields['job_id']}"
    assert "Out of memory" in read(front, "states", f"{card}?state=failed")
    assert front.call("GET", f"{card}?state=kept", None, cookie(front, "states"))[0] == 204


def test_a_deleted_render_is_gone_from_it(front: wp.Front, mine: Connection) -> None:
    """What an owner deleted must not look at them from the page."""
    job_id = published(front, mine, "page_deleted", "deleting", prompt="unwanted")
    assert front.ask("DELETE", f"/v1/renders/{job_id}", None, wp.BEARER).status == 204

    assert "unwanted" not in read(front, "deleting")
    assert front.call("GET", f"/page/jobs/{job_id}", None, cookie(front, "deleting"))[0] == 404


def test_more_is_shown_page_by_page(front: wp.Front) -> None:
    """Each job once, the newest first, with the filters kept."""
    for number in range(30):
        front.register(external_id=f"more_{number}", owner="many", prompt=f"number {number:02}", style="art & deco")
    query = urlencode({"style": "art & deco"})

    first = read(front, "many", f"/?{query}")
    link = first.split("data-more")[0].rsplit('href="', 1)[1].split('"')[0].replace("&amp;", "&")
    rest = read(front, "many", link, **{"x-fragment": "cards"})

    shown = [text[:9] for text in (first + rest).split('<h2 title="')[1:]]
    assert shown == [f"number {number:02}" for number in reversed(range(30))]
    assert "style=art%20%26%20deco" in link
    assert "<html" not in rest
    assert "data-more" not in rest


def test_a_card_lets_its_owner_act(front: wp.Front, mine: Connection) -> None:
    """A button does what it says, once, for the owner's own browser alone."""
    waiting = front.register(external_id="act_waiting", owner="acting", prompt="waits").fields["job_id"]
    partial = published(front, mine, "act_partial", "acting", dead=1, prompt="half")
    same = {**cookie(front, "acting"), "sec-fetch-site": "same-origin"}

    def act(job_id: str, what: str, headers: dict[str, str]) -> tuple[int, str]:
        status, answered, _ = front.call("POST", f"/page/jobs/{job_id}/{what}", b"", headers)
        return status, answered.get("location", "")

    assert act(waiting, "cancel", {**same, "sec-fetch-site": "cross-site"})[0] == 403
    assert act(waiting, "cancel", {**cookie(front, "else"), "sec-fetch-site": "same-origin"})[0] == 404
    assert act(waiting, "paint", same)[0] == 404
    assert act(waiting, "cancel", {}) == (303, "/")
    assert f"/page/jobs/{waiting}/cancel" in read(front, "acting")

    assert act(waiting, "cancel", same) == (303, "/?told=cancel")
    assert act(waiting, "retry", same) == (303, "/?told=refused")
    assert act(partial, "retry?state=partial", same) == (303, "/?state=partial&told=retry")

    page = read(front, "acting", "/?told=cancel")
    assert "Cancelled. What its provider" in page
    assert "Keeping 1 of 2" in page
