"""The page at `/` over HTTP: it shows an owner's jobs to that owner only."""

import html
import json
import re
from typing import get_args
from urllib.parse import urlencode

import pytest

from db.connection import Connection
from moorage.errors import Category
from moorage.provider_types import OutputFile
from moorage.retry_policy import DeadLetterDecision
from tests.integration import web_process as wp
from tests.integration.test_web_reads import end, hear
from web.http import visibility
from web.page import cards

SCRIPT = '<script>alert("ours")</script> & "co"'
GONE = DeadLetterDecision("DOWNLOAD_FAILED", "OutputGone", "404 Not Found", retryable=True)


def cookie(front: wp.Front, owner: str) -> dict[str, str]:
    """Return the header of an owner's browser after it has opened the application's link."""
    asked = json.dumps({"owner": owner, "scopes": ["jobs"]}).encode()
    made = front.ask("POST", "/v1/owner-tokens", asked, {**wp.BEARER, "content-type": "application/json"})
    begun = front.call("POST", "/v1/session", b"", {"authorization": f"Bearer {made.fields['token']}"})
    assert begun[0] == 204
    return {"cookie": begun[1]["set-cookie"].split(";")[0]}


def read(front: wp.Front, owner: str, path: str = "/", **headers: str) -> str:
    status, _, body = front.call("GET", path, None, {**cookie(front, owner), **headers})
    assert status == 200, body
    return body.decode()


def published(front: wp.Front, mine: Connection, external_id: str, owner: str, dead: int = 0, **asked: object) -> str:
    """Create a job with one kept file and some dead-lettered ones; return its id."""
    made = front.register(external_id=external_id, owner=owner, **asked)
    found = [OutputFile(f"output[{n}]", f"https://replicate.delivery/{n}.png") for n in range(1 + dead)]
    hear(mine, made, *found)
    end(mine, made, 0)
    for n in range(dead):
        end(mine, made, 1 + n, GONE)
    return str(made.fields["job_id"])


def test_without_a_session_the_page_explains_how_to_get_one(front: wp.Front) -> None:
    """A bare URL must explain itself and show no files."""
    status, headers, body = front.call("GET", "/")

    assert status == 200
    assert "link" in body.decode()
    assert "grid" not in body.decode()
    assert "'none'" in headers["content-security-policy"]
    assert front.call("GET", "/", None, {"cookie": "moorage=nonsense"})[2] == body


def test_the_page_loads_only_its_own_files_and_stored_ones(front: wp.Front, mine: Connection) -> None:
    """A prompt is untrusted text: it must not become markup, and could not run if it did."""
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
    """Neither in the list nor by id."""
    job_id = published(front, mine, "page_ada", "ada", prompt="of ada")
    published(front, mine, "page_bob", "bob", prompt="of bob")

    assert "of ada" in read(front, "ada")
    assert "of ada" not in read(front, "bob")
    assert "of ada" in read(front, "ada", f"/page/jobs/{job_id}")
    theirs = front.call("GET", f"/page/jobs/{job_id}", None, cookie(front, "bob"))
    nobody = front.call("GET", "/page/jobs/0198a000-0000-7000-8000-000000000000", None, cookie(front, "bob"))
    assert theirs[0] == nobody[0] == 404
    problems = [json.loads(answer[2]) | {"request_id": ""} for answer in (theirs, nobody)]
    assert problems[0] == problems[1]
    assert front.call("GET", f"/page/jobs/{job_id}")[0] == 401


def every_state(front: wp.Front, mine: Connection) -> dict[str, str]:
    """Create a job of the owner `states` in every card state; return the state by job id."""
    waiting = front.register(external_id="s_waiting", owner="states")
    partial = published(front, mine, "s_partial", "states", dead=1)
    kept = published(front, mine, "s_kept", "states")
    keeping = front.register(external_id="s_keeping", owner="states")
    hear(mine, keeping, *(OutputFile(f"output[{n}]", f"https://replicate.delivery/{n}.png") for n in range(3)))
    end(mine, keeping, 0)
    failed, expired, cancelled, replaced = (
        front.register(external_id=f"s_{name}", owner="states") for name in ("failed", "expired", "cancelled", "stands")
    )
    hear(mine, failed, status="failed")
    assert front.ask("POST", f"/v1/jobs/{cancelled.fields['job_id']}/cancel", b"", wp.BEARER).status == 200
    hear(mine, expired, OutputFile("output[0]", "https://replicate.delivery/gone.png"))
    end(mine, expired, 0, GONE)
    mine.execute("UPDATE outputs SET expires_at = ended_at WHERE job_id = %s", [expired.fields["job_id"]])
    hear(mine, replaced, OutputFile("output[0]", "https://replicate.delivery/made.png"))
    end(mine, replaced, 0)
    mine.execute("UPDATE outputs SET is_placeholder = true WHERE job_id = %s", [replaced.fields["job_id"]])
    asked = {"waiting": waiting, "keeping": keeping, "failed": failed, "expired": expired, "cancelled": cancelled}
    ids = {name: made.fields["job_id"] for name, made in {**asked, "placeholder": replaced}.items()}
    return {job_id: name for name, job_id in {**ids, "partial": partial, "kept": kept}.items()}


def shown(page: str) -> dict[str, str]:
    """Return the states of the cards on a page, by job id."""
    return {job_id: name for name, job_id in re.findall(r'class="card (\w+)" id="job-([0-9a-f-]+)"', page)}


def test_every_state_is_shown_and_found_by_its_filter(front: wp.Front, mine: Connection) -> None:
    """A failed job shows its reason and a kept one its progress; each filter finds the cards in that state."""
    made = every_state(front, mine)

    page = read(front, "states")

    assert shown(page) == made
    assert set(made.values()) == set(cards.JOB_STATES)
    for told in ("Submitted to replicate", "Partial: 1 of 2", "Keeping 1 of 3", "8 renders", "Expired", "Failed"):
        assert told in page
    assert page.count('<p class="state">') == 7  # a kept one needs no badge: its picture is there
    assert '<progress max="3" value="1"' in page
    for job_id, name in made.items():
        assert f'<option value="{name}">{name.capitalize()}</option>' in page
        assert shown(read(front, "states", f"/?state={name}&kind=")) == {job_id: name}
        assert shown(read(front, "states", f"/page/jobs/{job_id}?state={name}")) == {job_id: name}
        other = "failed" if name == "expired" else "expired"
        assert front.call("GET", f"/page/jobs/{job_id}?state={other}", None, cookie(front, "states"))[0] == 204
    assert shown(read(front, "states", "/?state=nonsense")) == made


def test_a_queued_job_is_not_shown_as_submitted(front: wp.Front, mine: Connection) -> None:
    """It was shown as submitted while it was queued here, which blamed the provider."""
    made = front.register(external_id="page_planned", owner="planning").fields
    mine.execute("UPDATE predictions SET state = 'planned' WHERE id = %s", [made["prediction_id"]])

    page = read(front, "planning")

    assert "Queued for replicate" in page
    assert "Submitted to" not in page


def test_a_deleted_render_is_not_shown(front: wp.Front, mine: Connection) -> None:
    """The owner deleted it."""
    job_id = published(front, mine, "page_deleted", "deleting", prompt="unwanted")
    assert front.ask("DELETE", f"/v1/renders/{job_id}", None, wp.BEARER).status == 204

    assert "unwanted" not in read(front, "deleting")
    assert front.call("GET", f"/page/jobs/{job_id}", None, cookie(front, "deleting"))[0] == 404


def test_paging_shows_each_job_once(front: wp.Front, mine: Connection) -> None:
    """Newest first, with the filters retained."""
    for number in range(30):
        front.register(external_id=f"more_{number}", owner="many", prompt=f"number {number:02}", style="art & deco")
    query = urlencode({"style": "art & deco"})

    first = read(front, "many", f"/?{query}")
    link = first.split("data-more")[0].rsplit('href="', 1)[1].split('"')[0].replace("&amp;", "&")
    rest = read(front, "many", link, **{"x-fragment": "cards"})
    mine.execute("UPDATE jobs SET created_at = created_at - interval '40 d' WHERE prompt < 'number 1'")
    days = re.findall(r'<li class="day"><h2>(.*?)</h2>', read(front, "many", link))

    titles = [text[:9] for text in (first + rest).split('<h3 title="')[1:]]
    assert titles == [f"number {number:02}" for number in reversed(range(30))]
    assert "style=art%20%26%20deco" in link
    assert "<html" not in rest
    assert "data-more" not in rest
    assert "30 renders" in first
    assert len(days) == 1
    assert len(re.findall('class="day"', read(front, "many"))) == 2


def test_a_card_has_the_owners_actions(front: wp.Front, mine: Connection) -> None:
    """A button acts once, and only for the owner's own browser."""
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

    assert act(waiting, "cancel", same) == (303, "/?result=cancel")
    assert act(waiting, "retry", same) == (303, "/?result=refused")
    assert act(partial, "retry?state=partial", same) == (303, "/?state=partial&result=retry")

    page = read(front, "acting", "/?result=cancel")
    assert "Cancelled. Files that the provider" in page
    assert "Keeping 1 of 2" in page


def test_an_owner_reads_a_sentence_and_the_application_the_reason(front: wp.Front, mine: Connection) -> None:
    """A bill of the operator, or the memory of a provider's machine, is nothing that an owner can mend."""
    raw = "Exhausted balance. Top up at fal.ai"
    for category in visibility.OWNER_SENTENCES:
        made = front.register(external_id=f"why_{category}", owner="why")
        hear(mine, made, OutputFile("output[0]", "https://replicate.delivery/0.png"))
        decision = DeadLetterDecision(category.replace("FOREIGN_HOST", "INTERNAL"), "Error", raw, retryable=True)
        end(mine, made, 0, decision)
        mine.execute("UPDATE outputs SET category = %s WHERE job_id = %s", [category, made.fields["job_id"]])
        assert raw in front.call("GET", made.headers["location"], None, wp.BEARER)[2].decode()
        assert raw not in front.call("GET", made.headers["location"], None, cookie(front, "why"))[2].decode()

    page = read(front, "why")

    assert raw not in page
    for sentence in visibility.OWNER_SENTENCES.values():
        assert sentence[1:] in html.unescape(page)
    assert set(get_args(Category)) < set(visibility.OWNER_SENTENCES)


def act(front: wp.Front, session: dict[str, str], path: str) -> tuple[int, str]:
    status, answered, _ = front.call("POST", f"/page/jobs/{path}", b"", {**session, "sec-fetch-site": "same-origin"})
    return status, answered.get("location", "")


def test_details_marks_and_deletion(front: wp.Front, mine: Connection) -> None:
    """What is known of a render, and what its owner may do with it; a render without files has no mark."""
    job_id = published(front, mine, "page_details", "details", prompt="a boat", model="acme/painter")
    waiting = front.register(external_id="page_no_files", owner="details").fields["job_id"]
    asked = json.dumps({"owner": "details", "scopes": ["jobs", "delete"]}).encode()
    token = front.ask("POST", "/v1/owner-tokens", asked, {**wp.BEARER, "content-type": "application/json"})
    headers = {"authorization": f"Bearer {token.fields['token']}"}
    titled = json.dumps({"title": "The quay <1>"}).encode()
    assert front.ask("PATCH", f"/v1/renders/{job_id}", titled, {**wp.BEARER, "content-type": "application/json"})

    page, limited = front.call("GET", "/", None, headers)[2].decode(), read(front, "details")

    assert '<h3 title="The quay &lt;1&gt;">' in page
    details = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page.split(f"job-{job_id}")[1]))
    assert details == {"Prompt": "a boat", "Model": "acme/painter", "Provider": "replicate", "Attempts": "1"}
    assert re.search(r'PNG, \d+ . \d+, [\d.]+ [kM]?B</span>\s+<a href="[^"]+" download>', page)
    assert f"/page/jobs/{job_id}/delete" in page
    assert "/delete" not in limited
    assert f"/page/jobs/{waiting}/mark" not in limited
    assert act(front, cookie(front, "details"), f"{job_id}/delete") == (403, "")
    assert {act(front, headers, f"{waiting}/{name}") for name in ("delete", "mark")} == {(303, "/?result=refused")}
    for action, is_marked in (("mark", True), ("mark", True), ("unmark", False)):
        assert act(front, headers, f"{job_id}/{action}?kind=image") == (303, f"/?kind=image&result={action}")
        assert ("star on" in read(front, "details")) is is_marked
    assert act(front, headers, f"{job_id}/delete") == (303, "/?result=delete")
    assert f"job-{job_id}" not in read(front, "details")
    assert act(front, headers, f"{job_id}/delete")[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/page/nonsense", 404, "Not found"),
        ("GET", "/page/jobs/nonsense", 404, "Not found"),
        ("GET", "/?before=nonsense", 404, "Not found"),
        ("GET", "/page/jobs/0198a000-0000-7000-8000-000000000000", 401, "Your session has expired"),
        ("GET", "/v1/assets/renders/0198a000-0000-7000-8000-000000000000/0", 404, "Not found"),
        ("DELETE", "/", 405, "This did not work"),
    ],
)
def test_a_browser_reads_a_page_and_a_program_a_problem(
    front: wp.Front, method: str, path: str, status: int, text: str
) -> None:
    """Who follows an old link does not read JSON."""
    session = {} if status == 401 else cookie(front, "lost")

    answers = [front.call(method, path, None, {**session, "accept": kind}) for kind in ("text/html,*/*;q=0.8", "*/*")]

    assert [answer[0] for answer in answers] == [status, status]
    assert answers[0][1]["content-type"].startswith("text/html")
    assert "'none'" in answers[0][1]["content-security-policy"]
    assert f"<h1>{text}</h1>" in answers[0][2].decode()
    assert json.loads(answers[1][2])["status"] == status
