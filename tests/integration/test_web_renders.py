"""Listing and deleting renders, listing jobs and their events, with granian and PostgreSQL."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from db import leases, projects
from db.connection import Connection
from embedded.stack import Stack
from moorage.model import ProjectKey
from tasks.audit import run
from tasks.outputs import discard
from tasks.step import Deps
from tasks.sweeps import reconcile
from tests.integration import command_line as cli
from tests.integration import kept_world as world
from tests.integration import web_process as wp

CORRUPT = "data:image/png;base64,iVBORw0KGgoAAAA="
NOBODY = "01890000-0000-7000-8000-000000000001"


@pytest.fixture(scope="module")
def deps(stack: Stack, url: str) -> Iterator[Deps]:
    made = cli.deps(stack, url)
    yield made
    made.database.close()


def listed(front: wp.Front, query: str) -> list[str]:
    answer = front.get(f"/v1/renders?{query}")
    assert answer.status == 200, answer.fields
    return [render["render_id"] for render in answer.fields["renders"]]


def remove(front: wp.Front, render_id: Any) -> wp.Answer:
    return front.ask("DELETE", f"/v1/renders/{render_id}", headers=wp.BEARER)


def test_renders_are_listed_newest_first_in_stable_pages(front: wp.Front, deps: Deps) -> None:
    """If pages shifted, a render would be shown twice or never."""
    made = [str(world.kept(deps, f"page_{n}", owner="pages")) for n in range(5)]

    first = front.get("/v1/renders?owner=pages&limit=2").fields
    later = str(world.kept(deps, "page_later", owner="pages"))
    second = front.get(f"/v1/renders?owner=pages&limit=2&before={first['next']}").fields
    third = front.get(f"/v1/renders?owner=pages&limit=2&before={second['next']}").fields

    shown = [render["render_id"] for page in (first, second, third) for render in page["renders"]]
    assert shown == made[::-1]
    assert third["next"] is None
    assert listed(front, "owner=pages&limit=1") == [later]


def test_a_listed_render_has_its_files(front: wp.Front, deps: Deps) -> None:
    """An application's page is built from the list alone."""
    job_id = world.kept(deps, "files", [world.picture("red"), world.picture("blue")], owner="files", style="noir")

    (render,) = front.get("/v1/renders?owner=files").fields["renders"]

    assert render == front.get(f"/v1/renders/{job_id}").fields
    assert (render["render_id"], render["state"], render["style"]) == (str(job_id), "succeeded", "noir")
    assert render["variants"] == front.get(f"/v1/jobs/{job_id}").fields["variants"]
    assert [variant["idx"] for variant in render["variants"]] == [0, 1]
    assert render["variants"][0]["url"].startswith(f"https://cdn.example/files/renders/{job_id}/0-")


def test_filters_narrow_the_list(front: wp.Front, deps: Deps) -> None:
    """Each alone and all together; one owner's list never contains another's."""
    noir = world.kept(deps, "noir", owner="filters", style="noir", project_id="filtered")
    half = world.kept(deps, "half", [world.picture(), CORRUPT], owner="filters", kind="video")
    world.kept(deps, "other", owner="others", style="noir")

    assert listed(front, "owner=filters") == [str(half), str(noir)]
    assert listed(front, "owner=filters&style=noir") == listed(front, "project_id=filtered") == [str(noir)]
    assert listed(front, "owner=filters&state=partial") == listed(front, "owner=filters&kind=video") == [str(half)]
    assert listed(front, "owner=filters&style=noir&kind=video") == []
    assert listed(front, "owner=nobody") == []


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ("limit=0", "limit", "greater than or equal to 1"),
        ("limit=101", "limit", "less than or equal to 100"),
        ("limit=many", "limit", "integer"),
        ("before=7", "before", "UUID"),
        ("kind=sound", "kind", "should be 'image', 'video' or 'mixed'"),
        ("ownr=ada", "ownr", "did you mean owner?"),
        ("owner=a&owner=b", "owner", "more than once"),
        ("owner=", "owner", "is empty"),
        ("owner=%00", "owner", "NUL"),
    ],
)
def test_an_invalid_query_is_rejected_and_not_ignored(front: wp.Front, query: str, field: str, message: str) -> None:
    """An ignored filter would show one owner the renders of all."""
    refused = front.get(f"/v1/renders?{query}")

    assert refused.status == 422
    assert refused.fields["errors"][0]["field"] == field
    assert message in refused.fields["errors"][0]["message"]


def test_a_deleted_render_is_removed_everywhere(front: wp.Front, deps: Deps, mine: Connection) -> None:
    """For readers, in the document and in storage; a second DELETE is harmless."""
    job_id = world.kept(deps, "gone", owner="gone", project_id="gone", scene=1)
    mine.execute("""UPDATE projects SET document = '{"scenes": [{"id": 1}]}' WHERE id = 'gone'""")
    reconcile.reconcile(deps, "tests", len, {"documents"})
    before = deps.database.run(lambda c: projects.get(c, ProjectKey("gone", "gone")))
    keys = mine.execute("SELECT key, thumb_key FROM outputs WHERE job_id = %s", [job_id]).fetchone()

    answers = [remove(front, job_id), remove(front, job_id)]
    discard_all(deps)

    assert before is not None
    assert len(before["document"]["scenes"][0]["imageUrls"]) == 1
    assert [answer.status for answer in answers] == [204, 204]
    assert front.get(f"/v1/renders/{job_id}").status == 404
    assert listed(front, "owner=gone") == []
    assert front.get(f"/v1/jobs/{job_id}").fields["render_id"] is None
    assert front.get("/v1/projects/gone").fields["document"]["scenes"][0]["imageUrls"] == []
    assert keys is not None
    assert [deps.storage.head(deps.storage.public_bucket, key) for key in keys.values()] == [None, None]
    told = front.get(f"/v1/jobs/{job_id}/events").fields["events"]
    deleted = [event for event in told if (event["subject"], event["to_state"]) == ("render", "deleted")]
    assert [(event["actor"], event["reason"]) for event in deleted] == [("api", "deleted by the application")]
    found = run.run_audit(deps, deep=True, second_look_seconds=0.0).findings
    assert [finding for finding in found if finding.subject != "object"] == []


def discard_all(deps: Deps) -> None:
    """Run the discard step for every output that is to be discarded."""
    for row_id in deps.database.run(lambda conn: leases.wake_due(conn, "discard", limit=100, queue_is_empty=True)):
        lease = world.claim(deps, world.Wake("discard", row_id))
        discard.run(deps, lease, world.Calm())


def test_a_render_of_an_unsettled_job_is_not_deleted(front: wp.Front, deps: Deps, mine: Connection) -> None:
    """A file that is added afterwards would remain in storage, unseen."""
    job_id = world.kept(deps, "busy", owner="busy")
    mine.execute("UPDATE jobs SET state = 'keeping', settled_at = NULL, run_at = moment() WHERE id = %s", [job_id])

    busy = remove(front, job_id)
    mine.execute("UPDATE jobs SET state = 'succeeded', settled_at = moment(), run_at = NULL WHERE id = %s", [job_id])

    assert (busy.status, busy.fields["type"]) == (409, "urn:moorage:problem:conflict")
    assert remove(front, job_id).status == 204


@pytest.mark.parametrize("render_id", [NOBODY, "7", "%00", f"%7B{NOBODY}%7D"])
def test_deleting_an_unknown_render_is_404(front: wp.Front, render_id: str) -> None:
    """Not a 204: a wrong id would look like a deletion."""
    assert remove(front, render_id).status == 404
    assert front.get(f"/v1/renders/{render_id}").status == 404


def test_a_405_lists_all_methods_of_the_path(front: wp.Front) -> None:
    """Two methods of one path must not hide each other."""
    refused = front.ask("PUT", f"/v1/renders/{NOBODY}", headers=wp.BEARER)

    assert refused.status == 405
    assert set(refused.headers["allow"].split(", ")) == {"GET", "HEAD", "PATCH", "DELETE"}


def test_jobs_are_listed_with_their_progress(front: wp.Front, deps: Deps) -> None:
    """Also those without a render: a list of renders alone would hide every failure."""
    opened = front.register(external_id="listed_open", owner="lister").fields["job_id"]
    half = str(world.kept(deps, "listed_half", [world.picture(), CORRUPT], owner="lister"))

    page = front.get("/v1/jobs?owner=lister").fields
    first = front.get("/v1/jobs?owner=lister&limit=1").fields
    second = front.get(f"/v1/jobs?owner=lister&limit=1&before={first['next']}").fields

    assert [(job["job_id"], job["state"], job["kept"], job["outputs"]) for job in page["jobs"]] == [
        (half, "partial", 1, 2),
        (opened, "open", 0, 0),
    ]
    assert [job["job_id"] for job in first["jobs"] + second["jobs"]] == [half, opened]
    assert (page["next"], second["next"]) == (None, None)
    assert [job["job_id"] for job in front.get("/v1/jobs?owner=lister&state=open").fields["jobs"]] == [opened]


def test_the_events_of_a_job_are_paged(front: wp.Front, deps: Deps) -> None:
    """Every transition once and in order, with actor, time and reason."""
    job_id = world.kept(deps, "history")

    whole = front.get(f"/v1/jobs/{job_id}/events").fields
    pages: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = front.get(f"/v1/jobs/{job_id}/events?limit=2&after={after}").fields
        pages += page["events"]
        after = page["next"]

    assert pages == whole["events"]
    edges = [(event["subject"], event["from_state"], event["to_state"]) for event in pages]
    assert edges[0] == ("job", None, "open")
    assert ("output", "waiting", "kept") in edges
    assert edges[-1] == ("job", "keeping", "succeeded")
    assert front.get(f"/v1/jobs/{NOBODY}/events").status == 404
    assert front.get(f"/v1/jobs/{UUID(NOBODY).hex}/events").status == 404


def change(front: wp.Front, render_id: Any, fields: dict[str, Any], token: dict[str, str] = wp.BEARER) -> wp.Answer:
    body, headers = json.dumps(fields).encode(), {**token, "content-type": "application/json"}
    return front.ask("PATCH", f"/v1/renders/{render_id}", body, headers)


def test_title_favourite_and_cover_are_changed_one_by_one(front: wp.Front, deps: Deps) -> None:
    """What a request does not name stays as it is."""
    render_id = world.kept(deps, "patched", [world.picture("red"), world.picture("blue")], owner="pat")

    answers = [
        change(front, render_id, fields)
        for fields in ({"title": "Hall"}, {"favourite": True}, {"cover_idx": 1}, {"title": None}, {})
    ]

    shown = [(a.status, a.fields["title"], a.fields["favourite"], a.fields["cover_idx"]) for a in answers]
    assert shown == [
        (200, "Hall", False, 0),
        (200, "Hall", True, 0),
        (200, "Hall", True, 1),
        (200, None, True, 1),
        (200, None, True, 1),
    ]
    assert [variant["is_cover"] for variant in answers[-1].fields["variants"]] == [False, True]
    assert change(front, render_id, {"cover_idx": 2}).fields["errors"][0]["field"] == "cover_idx"
    assert change(front, render_id, {"favorite": True}).status == 422
    assert change(front, NOBODY, {"title": "x"}).status == 404


def test_many_are_deleted_and_cancelled_at_once(front: wp.Front, deps: Deps) -> None:
    """Each has its own result; repeating the request changes nothing."""
    kept = [str(world.kept(deps, f"bulk_{n}", owner="bulk")) for n in range(2)]
    running = front.register(external_id="bulk_running", owner="bulk").fields["job_id"]

    def ask(path: str, **fields: list[str]) -> wp.Answer:
        return front.ask("POST", path, json.dumps(fields).encode(), {**wp.BEARER, "content-type": "application/json"})

    cancelled = [ask("/v1/jobs/cancel", job_ids=[running, kept[0], NOBODY, running]) for _ in range(2)]
    deleted = [ask("/v1/renders/delete", render_ids=[*kept, NOBODY]) for _ in range(2)]

    assert [answer.fields["changed"] for answer in cancelled] == [[running], [running]]
    assert [(row["id"], row["status"]) for row in cancelled[0].fields["refused"]] == [(kept[0], 409), (NOBODY, 404)]
    assert [answer.fields["changed"] for answer in deleted] == [kept, kept]
    assert ask("/v1/jobs/cancel", job_ids=[running] * 101).status == 422
    assert ask("/v1/jobs/cancel", job_ids=["x"]).status == 422
