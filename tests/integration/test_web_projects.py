"""Projects over HTTP: documents and scenes, computed `imageUrls`, and progress counted from rows."""

import json
from typing import Any

import pytest

from db.connection import Connection
from moorage.provider_types import OutputFile
from moorage.retry_policy import DeadLetterDecision
from tests.integration import web_process as wp
from tests.integration.test_web_reads import end, hear

PROVIDER = OutputFile("output[0]", url="https://replicate.delivery/a.png")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Return a project id of this test."""
    return request.node.name[:100]


def send(front: wp.Front, method: str, path: str, body: Any = None, token: str = wp.TOKEN, **headers: str) -> wp.Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
    sent = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    sent |= {key.replace("_", "-"): value for key, value in headers.items()}
    return front.ask(method, path, raw, sent)


def put(front: wp.Front, name: str, document: Any, **headers: str) -> wp.Answer:
    return send(front, "PUT", f"/v1/projects/{name}", {"owner": "ada", "document": document}, **headers)


def started(front: wp.Front, mine: Connection, name: str, scene: object, outputs: int = 1) -> wp.Answer:
    """Register a job of a project and let its prediction succeed; its outputs are waiting."""
    made = front.register(external_id=f"{name}-{scene}"[-200:], project_id=name, scene=scene)
    assert made.status == 201, made
    hear(mine, made, *(OutputFile(f"output[{n}]", url=f"https://replicate.delivery/{n}.png") for n in range(outputs)))
    return made


def images(answer: wp.Answer) -> dict[Any, list[str]]:
    return {scene["id"]: scene["imageUrls"] for scene in answer.fields["generated_output"]["scenes"]}


def test_a_document_is_stored_and_returned_with_image_urls(front: wp.Front, mine: Connection, name: str) -> None:
    """`imageUrls` in the request are ignored."""
    scenes = [{"id": "a", "title": "Hall", "imageUrls": ["stale"]}, {"id": "b"}]

    made = put(front, name, {"title": "House", "scenes": scenes})
    key = end(mine, started(front, mine, name, "a"), 0)
    shown = front.get(f"/v1/projects/{name}")

    assert (made.status, made.fields["status"], made.fields["image_upload_progress"]) == (201, "open", 0)
    assert made.fields["generated_output"]["scenes"][0]["imageUrls"] == []
    assert shown.fields["generated_output"] == {
        "scenes": [{"id": "a", "index": 1, "imageUrls": [f"{key}.png"]}, {"id": "b", "index": 2, "imageUrls": []}]
    }
    assert shown.fields["document"]["title"] == "House"


def test_a_stale_document_loses_no_image(front: wp.Front, mine: Connection, name: str) -> None:
    """The application writes a copy from a minute ago: its own fields are stored, ours are computed."""
    put(front, name, {"scenes": [{"id": "a"}]})
    key = end(mine, started(front, mine, name, "a"), 0)

    again = put(front, name, {"scenes": [{"id": "a", "imageUrls": [], "note": "mine"}, {"id": "c"}]})

    assert again.status == 200
    assert images(again) == {"a": [f"{key}.png"], "c": []}
    stored = mine.execute("SELECT document FROM projects WHERE id = %s", [name]).fetchone()
    assert stored is not None
    assert stored["document"]["scenes"][0] == {"id": "a", "note": "mine", "imageUrls": [f"{key}.png"]}


def test_numbers_are_stored_to_the_last_digit(front: wp.Front, mine: Connection, name: str) -> None:
    """As a float, 1e400 is rejected by PostgreSQL and twenty digits are rounded."""
    raw = b'{"owner": "ada", "document": {"far": 1e400, "fine": 0.12345678901234567890, "scenes": []}}'

    assert send(front, "PUT", f"/v1/projects/{name}", raw).status == 201

    stored = mine.execute("SELECT document::text AS t FROM projects WHERE id = %s", [name]).fetchone()
    assert stored is not None
    assert "0.12345678901234567890" in stored["t"]
    assert "1" + "0" * 400 in stored["t"]


def test_an_id_belongs_to_its_owner(front: wp.Front, url: str, name: str) -> None:
    """Two owners have a "film": documents, jobs and files of one never touch the other's."""
    put(front, name, {"scenes": [{"id": "a"}]})
    alone = front.get(f"/v1/projects/{name}")
    other = send(front, "PUT", f"/v1/projects/{name}", {"owner": "bob", "document": {"scenes": [{"id": "b"}]}})
    made = front.register(external_id=f"two-{name}"[-200:], project_id=name, scene="b", owner="bob")

    unclear = front.get(f"/v1/projects/{name}")
    bobs, adas = (front.get(f"/v1/projects/{name}?owner={owner}") for owner in ("bob", "ada"))
    added = send(front, "POST", f"/v1/projects/{name}/scenes?owner=bob", {"id": "c"})
    unclear_scene = send(front, "POST", f"/v1/projects/{name}/scenes", {"id": "d"})

    assert (alone.status, other.status, made.status) == (200, 201, 201)
    assert (unclear.status, unclear_scene.status) == (409, 409)
    assert "(ada, bob)" in unclear.fields["detail"]
    assert (bobs.fields["progress"]["jobs"], adas.fields["progress"]["jobs"]) == (1, 0)
    assert (images(bobs), images(adas)) == ({"b": []}, {"a": []})
    assert images(added) == {"b": [], "c": []}
    assert front.get(f"/v1/projects/{name}?owner=nobody").status == 404


def test_another_owners_project_is_not_visible(front: wp.Front, name: str) -> None:
    """Also not by guessing its id: read, write, scenes."""
    put(front, name, {"scenes": [{"id": "a"}]})
    token = send(front, "POST", "/v1/owner-tokens", {"owner": "bob", "scopes": ["jobs", "delete"]}).fields["token"]

    answers = [
        send(front, "GET", f"/v1/projects/{name}", token=token),
        send(front, "POST", f"/v1/projects/{name}/scenes", {"id": "x"}, token=token),
        send(front, "DELETE", f"/v1/projects/{name}/scenes/a", token=token),
        send(front, "PATCH", f"/v1/projects/{name}/scenes", {"order": ["a"]}, token=token),
        send(front, "PUT", f"/v1/projects/{name}", {"document": {}}, token=token),
    ]

    assert [answer.status for answer in answers] == [404, 404, 404, 404, 201]  # at last bob's own
    assert images(front.get(f"/v1/projects/{name}?owner=ada")) == {"a": []}


def test_an_owner_token_writes_its_owners_projects(front: wp.Front, name: str) -> None:
    """A browser saves its own project without the application's token."""
    token = send(front, "POST", "/v1/owner-tokens", {"owner": "cleo", "scopes": ["jobs"]}).fields["token"]

    made = send(front, "PUT", f"/v1/projects/{name}", {"document": {"scenes": []}}, token=token)

    assert (made.status, made.fields["owner"]) == (201, "cleo")


def test_only_the_latest_version_may_be_replaced(front: wp.Front, mine: Connection, name: str) -> None:
    """Two editors; a new image does not change the version, a changed title does."""
    etag = put(front, name, {"title": "one", "scenes": [{"id": "a"}]}).headers["etag"]
    end(mine, started(front, mine, name, "a"), 0)

    second = put(front, name, {"title": "two", "scenes": [{"id": "a"}]}, if_match=etag)
    third = put(front, name, {"title": "three", "scenes": []}, if_match=etag)
    none = put(front, name + "-none", {}, if_match=etag)

    assert [second.status, third.status, none.status] == [200, 412, 404]
    assert front.get(f"/v1/projects/{name}").fields["document"]["title"] == "two"


def test_images_are_placed_when_their_scene_is_added(front: wp.Front, mine: Connection, name: str) -> None:
    """Files may arrive before their scene."""
    put(front, name, {"scenes": [{"id": "a"}]})
    key = end(mine, started(front, mine, name, "late"), 0)
    assert [row["url"] for row in front.get(f"/v1/projects/{name}").fields["unplaced"]] == [f"{key}.png"]

    added = send(front, "POST", f"/v1/projects/{name}/scenes", {"id": "late", "title": "x", "imageUrls": ["stale"]})

    assert added.status == 201
    assert images(added) == {"a": [], "late": [f"{key}.png"]}
    assert added.fields["unplaced"] == []


def test_a_hundred_unplaced_files_are_shown(front: wp.Front, mine: Connection, name: str) -> None:
    """A tenant may put every file into one project; the list of renders has the others."""
    put(front, name, {"scenes": []})
    job = started(front, mine, name, "late", outputs=101)
    for number in range(101):
        end(mine, job, number)

    shown = front.get(f"/v1/projects/{name}").fields

    assert [row["idx"] for row in shown["unplaced"]] == list(range(100))
    assert shown["progress"]["files_kept"] == 101


def test_the_files_of_a_removed_scene_are_unplaced(front: wp.Front, mine: Connection, name: str) -> None:
    """They are retained: the scene may be added again."""
    put(front, name, {"scenes": [{"id": 1}, {"id": "b"}]})
    key = end(mine, started(front, mine, name, 1), 0)

    removed = send(front, "DELETE", f"/v1/projects/{name}/scenes/1")
    after = front.get(f"/v1/projects/{name}")
    missing = send(front, "DELETE", f"/v1/projects/{name}/scenes/1")

    assert [removed.status, missing.status] == [204, 404]
    assert images(after) == {"b": []}
    assert [row["url"] for row in after.fields["unplaced"]] == [f"{key}.png"]
    assert images(send(front, "POST", f"/v1/projects/{name}/scenes", {"id": 1})) == {"b": [], 1: [f"{key}.png"]}


def test_scenes_are_reordered(front: wp.Front, mine: Connection, name: str) -> None:
    """Scenes that are not named follow in their old order; each keeps its images."""
    put(front, name, {"scenes": [{"id": n} for n in "abcd"]})
    key = end(mine, started(front, mine, name, "c"), 0)

    ordered = send(front, "PATCH", f"/v1/projects/{name}/scenes", {"order": ["d", "c"]})

    assert list(images(ordered)) == ["d", "c", "a", "b"]
    assert images(ordered)["c"] == [f"{key}.png"]


@pytest.mark.parametrize("order", [["a", "a"], ["a", "nobody"], [True], "a"])
def test_an_invalid_order_is_rejected(front: wp.Front, name: str, order: Any) -> None:
    """A scene that is named twice would be duplicated."""
    put(front, name, {"scenes": [{"id": "a"}, {"id": "b"}]})

    assert send(front, "PATCH", f"/v1/projects/{name}/scenes", {"order": order}).status == 422

    assert list(images(front.get(f"/v1/projects/{name}"))) == ["a", "b"]


def test_a_scene_without_a_name_gets_one_and_a_duplicate_is_rejected(front: wp.Front, name: str) -> None:
    """Two scenes with one name would share their images."""
    put(front, name, {"scenes": [{"id": "a"}, {"index": 7}]})

    unnamed = send(front, "POST", f"/v1/projects/{name}/scenes", {"title": "x"})
    taken = [send(front, "POST", f"/v1/projects/{name}/scenes", scene) for scene in ({"id": "a"}, {"index": "7"})]

    assert len(unnamed.fields["document"]["scenes"][2]["id"]) == 36
    assert [answer.status for answer in taken] == [409, 409]


@pytest.mark.parametrize(
    "body",
    [
        b'{"document": {}}',
        b'{"owner": "ada"}',
        b'{"owner": "ada", "document": []}',
        b'{"owner": "ada", "document": {"scenes": {}}}',
        b'{"owner": "ada", "document": {"scenes": [3]}}',
        b'{"owner": "ada", "document": {}, "status": "open"}',
        b'{"owner": "ada", "document": {"x": "\\u0000"}}',
        b'{"owner": "ada", "document": {"\\ud800": 1}}',
        b'{"owner": "ada", "document": {"x": 1e200000}}',
        b'{"owner": "ada", "document": {"x": 1e131071}}',
        b'{"owner": "ada", "document": {"x": [-1.5E-16383]}}',
        b'{"owner": "ada", "document": {"x": [' + b"1e-999," * 1500 + b"0]}}",
        b'{"owner": "ada", "document": {"x": ' + b"[" * 99 + b"]" * 99 + b"}}",
    ],
)
def test_a_document_that_cannot_be_stored_is_rejected(front: wp.Front, name: str, body: bytes) -> None:
    """Nothing of it is stored."""
    assert send(front, "PUT", "/v1/projects/refused", body).status == 422

    assert front.get("/v1/projects/refused").status == 404


@pytest.mark.parametrize(
    ("project_id", "says"),
    [
        ("x" * 201, "project_id should have at most 200 characters"),
        ("%00", "project_id contains a NUL character"),
        ("%20", "project_id is empty"),
        ("%2E", "project_id must not contain a slash or be a dot segment"),
        ("%2e%2e", "project_id must not contain a slash or be a dot segment"),
    ],
)
def test_an_id_that_cannot_be_created_is_rejected_with_the_reason(front: wp.Front, project_id: str, says: str) -> None:
    """PUT creates projects, so that 404 would say nothing; no job or registration could name such a project."""
    refused = put(front, project_id, {})

    assert (refused.status, refused.fields["errors"][0]["field"]) == (422, "project_id")
    assert says in refused.fields["detail"]
    assert front.get(f"/v1/projects/{project_id}").status == 404


def test_a_nul_character_in_a_document_is_named(front: wp.Front) -> None:
    refused = put(front, "nul", {"x": "a\0b"})

    assert refused.fields["detail"] == "document contains a NUL character, which cannot be stored"


def test_a_scene_of_many_digits_is_rejected(front: wp.Front, mine: Connection, name: str) -> None:
    """Of seven bytes PostgreSQL makes 131,072 digits in every text of the document; text itself may look like it."""
    put(front, name, {"scenes": []})

    refused = send(front, "POST", f"/v1/projects/{name}/scenes", b'{"id": "a", "x": {"y": [1e131071]}}')
    stored = send(front, "POST", f"/v1/projects/{name}/scenes", b'{"id": "b", "x": "1e131071", "y": 1.5E+3}')

    assert refused.status == 422
    assert "such as 1e131071: send them as text" in refused.fields["errors"][0]["message"]
    assert (stored.status, list(images(stored))) == (201, ["b"])


def test_a_document_grows_to_a_limit(front: wp.Front, mine: Connection, name: str) -> None:
    """A thousand scenes of a megabyte each are a gigabyte in one row, which nothing can read."""
    put(front, name, {"scenes": []})

    grown = [send(front, "POST", f"/v1/projects/{name}/scenes", {"id": n, "text": "x" * 1_000_000}) for n in range(5)]

    assert [answer.status for answer in grown] == [201] * 4 + [409]
    assert "larger than 4194304 bytes" in grown[-1].fields["detail"]
    assert list(images(front.get(f"/v1/projects/{name}"))) == [0, 1, 2, 3]
    assert send(front, "DELETE", f"/v1/projects/{name}/scenes/0").status == 204
    assert send(front, "POST", f"/v1/projects/{name}/scenes", {"id": 4, "text": "x" * 1_000_000}).status == 201


def test_progress_is_counted_from_the_rows(front: wp.Front, mine: Connection, name: str) -> None:
    """While files arrive, and after the last one: also if some never arrive."""
    put(front, name, {"scenes": [{"id": "a"}, {"id": "b"}]})
    whole, broken = started(front, mine, name, "a", outputs=3), started(front, mine, name, "b")

    end(mine, whole, 0)
    half = front.get(f"/v1/projects/{name}").fields
    end(mine, whole, 1)
    end(mine, whole, 2)
    end(mine, broken, 0, DeadLetterDecision("DOWNLOAD_FAILED", "OutputGone", "404", retryable=True))
    done = front.get(f"/v1/projects/{name}").fields

    assert (half["status"], half["image_upload_progress"]) == ("open", 25)
    counts = {"jobs": 2, "settled": 2, "failed": 1, "placeholders": 0, "files_asked": 4, "files_kept": 3}
    assert done["progress"] == {**counts, "files_failed": 1}
    assert (done["status"], done["image_upload_progress"]) == ("assets_generated", 100)
    assert [(one["scene"], one["category"]) for one in done["failures"]] == [("b", "DOWNLOAD_FAILED")]
    assert status(mine, name) == "assets_generated"


def test_a_new_job_reopens_a_project(front: wp.Front, mine: Connection, name: str) -> None:
    """A scene that is generated again is not done because the others were."""
    put(front, name, {"scenes": [{"id": "a"}]})
    end(mine, started(front, mine, name, "a"), 0)
    assert status(mine, name) == "assets_generated"

    started(front, mine, name, "again")

    assert status(mine, name) == front.get(f"/v1/projects/{name}").fields["status"] == "open"


def status(mine: Connection, name: str) -> str:
    row = mine.execute("SELECT status FROM projects WHERE id = %s", [name]).fetchone()
    assert row is not None
    return str(row["status"])


def test_projects_are_listed_and_deleted(front: wp.Front, mine: Connection, name: str) -> None:
    """Files remain as renders without a project; a project with an unsettled job stays."""
    for number in range(3):
        body = {"owner": "lia", "document": {"scenes": []}}
        send(front, "PUT", f"/v1/projects/{name}-{number}", body)
    first = front.get("/v1/projects?owner=lia&limit=2").fields
    second = front.get(f"/v1/projects?owner=lia&limit=2&after={first['next']}").fields
    put(front, name, {"scenes": [{"id": "a"}]})
    made = started(front, mine, name, "a")

    early = send(front, "DELETE", f"/v1/projects/{name}")
    end(mine, made, 0)
    late = send(front, "DELETE", f"/v1/projects/{name}")

    ids = [project["project_id"] for page in (first, second) for project in page["projects"]]
    assert ids == [f"{name}-{number}" for number in range(3)]
    assert (early.status, late.status) == (409, 204)
    assert front.get(f"/v1/projects/{name}").status == 404
    render = front.get(f"/v1/renders/{made.fields['job_id']}").fields
    assert (render["project_id"], render["scene"], len(render["variants"])) == (None, None, 1)
    assert front.get("/v1/projects").status == 422
