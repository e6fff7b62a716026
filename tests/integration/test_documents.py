"""Rule 9: every published file stands in one place of its project's document, whoever else writes there."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from db import placements, projects
from db.connection import Row, connect
from embedded.stack import Stack
from moorage.model import ProjectKey
from tasks.audit import rows
from tasks.jobs import delete_render
from tasks.sweeps import reconcile
from tests.integration.core import World, database_of, together, world


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "documents")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def project(at: World, document: object, project_id: str = "home") -> None:
    at.conn.execute("INSERT INTO projects (id, owner, document) VALUES (%s, 'ann', %s)", (project_id, Jsonb(document)))


def document(at: World, project_id: str = "home"):
    return at.one("SELECT document FROM projects WHERE id = %s", project_id)


def run_reconcile(at: World) -> dict:
    return reconcile.reconcile(at.deps, "sweeper", len, {"documents"})


def test_a_kept_file_appears_in_its_scene(at: World) -> None:
    """The application reads its document, not our tables."""
    project(at, {"title": "x", "scenes": [{"id": "a"}, {"id": "b", "note": 1}]})

    made = at.keeping([at.source.picture(), at.source.picture()], project_id="home", scene="b")
    at.keep_all(made.job_id)

    keys = [at.row("outputs", output_id)["key"] for output_id in at.outputs(made.job_id)]
    urls = [at.deps.storage.build_asset_url(key) for key in keys]
    scenes = [{"id": "a"}, {"id": "b", "note": 1, "imageUrls": urls}]
    assert document(at) == {"title": "x", "scenes": scenes}


def test_what_is_not_ours_in_a_document_is_kept_to_the_last_digit(at: World) -> None:
    """Through a float 1e400 is refused by PostgreSQL and twenty digits are cut."""
    numbers = '{"scenes": [{"id": 1, "far": 1e400, "fine": 0.12345678901234567890}], "pi": 3.1415926535897932384626}'
    at.conn.execute("INSERT INTO projects (id, owner, document) VALUES ('home', 'ann', %s::jsonb)", (numbers,))
    before = at.one("SELECT (document #- '{scenes,0,imageUrls}')::text FROM projects")

    made = at.keeping([at.source.picture()], project_id="home", scene=1)
    at.keep_all(made.job_id)

    assert at.state("jobs", made.job_id) == "succeeded"
    assert at.one("SELECT (document #- '{scenes,0,imageUrls}')::text FROM projects") == before
    assert at.one("SELECT jsonb_array_length(document #> '{scenes,0,imageUrls}') FROM projects") == 1


def test_a_file_whose_scene_is_not_there_is_unplaced_until_it_is(at: World) -> None:
    """Nothing is lost because the application wrote its scenes later."""
    project(at, {"scenes": []})
    made = at.keeping([at.source.picture()], project_id="home", scene="late")
    at.keep_all(made.job_id)
    assert at.one("SELECT scene_key FROM placements") is None

    at.conn.execute("UPDATE projects SET document = %s", (Jsonb({"scenes": [{"id": "late"}]}),))
    assert run_reconcile(at)["documents"] == 1

    assert at.one("SELECT scene_key FROM placements") == "id:late"
    assert len(document(at)["scenes"][0]["imageUrls"]) == 1


def test_the_scenes_of_jobs_are_added_until_the_application_writes_a_document(at: World) -> None:
    """The first job of a project has a place for its files; a document of the application stays as it wrote it."""
    for scene in ("hall", 3, "hall"):
        made = at.keeping([at.source.picture()], project_id="home", scene=scene)
        at.keep_all(made.job_id)
    run_reconcile(at)
    scenes = document(at)["scenes"]

    assert [(scene["id"], len(scene["imageUrls"])) for scene in scenes] == [("hall", 2), (3, 1)]

    for shape in ({"scenes": [{"id": "own"}], "title": "mine"}, {"scenes": {"a": 1}}, {"scenes": None}, {}):
        at.conn.execute("UPDATE projects SET document = %s", (Jsonb(shape),))  # by another program
        at.keeping([at.source.picture()], project_id="home", scene="new")
        assert document(at) == shape


def test_a_document_without_scenes_is_left_as_it_is(at: World) -> None:
    """Applications keep other things in their documents."""
    odd = [{"scenes": {"a": 1}}, {"scenes": []}, {}, {"scenes": [1, None, "x"]}]
    for number, content in enumerate(odd):
        project(at, content, f"odd{number}")

    assert run_reconcile(at)["documents"] == len(odd)

    assert [document(at, f"odd{number}") for number in range(len(odd))] == odd
    assert at.deps.database.run(projects.list_overwritten) == []


def test_a_mended_document_is_not_looked_at_again(at: World) -> None:
    """The sweep costs what was overwritten."""
    project(at, {"scenes": [{"id": "a"}]})
    assert run_reconcile(at)["documents"] == 1

    assert run_reconcile(at)["documents"] == 0


def repeat_failed_steps(at: World) -> None:
    """Keep what was to be retried, as after a time-out on a busy machine."""
    waiting = "UPDATE outputs SET run_at = moment() WHERE state = 'waiting' RETURNING id"
    while rows := at.conn.execute(waiting).fetchall():
        for row in rows:
            at.step("keep", row["id"])


SHARED: dict[str, Any] = {
    "scenes": [
        {"id": "a", "index": 1},
        {"id": "b", "index": 1},
        {"note": "first"},
        {"id": "a"},
        {"index": "b"},
        {"id": 2},
    ]
}


def audit_document(at: World, project_id: str = "home") -> list[str]:
    key = ProjectKey("ann", project_id)
    return at.deps.database.run(lambda conn: rows._check_document(conn, key, at.deps.asset_base))


def test_one_scene_is_updated_as_the_whole_document_would_be(at: World) -> None:
    """Scenes may share an id or an index; then a file of one key may stand beside those of another one."""
    project(at, SHARED)
    made = []
    for scene in ("a", 1, "b", None, "1", 2.0, "nowhere", "a", 3, "b", 1, None):
        made.append(at.keeping([at.source.picture()], project_id="home", scene=scene))
        at.keep_all(made[-1].job_id)

        assert audit_document(at) == []

    for one in made[::2]:
        with at.deps.database.transaction() as conn:
            delete_render.delete_render(conn, one.job_id, asset_base=at.deps.asset_base, actor="api", reason="test")

        assert audit_document(at) == []


def test_a_file_reads_only_those_of_its_scene(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project is locked meanwhile, and a tenant may put every file into one."""
    project(at, {"scenes": [{"id": "a"}, {"id": "b"}]})
    for scene in ("a", "b", None, None):
        at.keep_all(at.keeping([at.source.picture()], project_id="home", scene=scene).job_id)
    read: list[Row] = []
    list_placements = placements.list_placements

    def listen(*args: Any) -> list[Row]:
        found = list_placements(*args)
        read.extend(found)
        return found

    monkeypatch.setattr(placements, "list_placements", listen)

    at.keep_all(at.keeping([at.source.picture()], project_id="home", scene="nowhere").job_id)
    assert read == []

    at.keep_all(at.keeping([at.source.picture()], project_id="home", scene="a").job_id)
    assert [row["scene"] for row in read] == ["a", "a"]


def test_a_file_without_a_scene_does_not_hide_that_the_document_was_overwritten(at: World) -> None:
    """The sweep would not look at it again."""
    project(at, {"scenes": [{"id": "a"}]})
    at.keep_all(at.keeping([at.source.picture()], project_id="home", scene="a").job_id)
    at.conn.execute("UPDATE projects SET document = %s", (Jsonb({"scenes": [{"id": "a"}]}),))

    at.keep_all(at.keeping([at.source.picture()], project_id="home", scene="nowhere").job_id)
    run_reconcile(at)

    assert audit_document(at) == []
    assert len(document(at)["scenes"][0]["imageUrls"]) == 1


def test_a_hundred_files_by_eight_workers_survive_an_application_that_overwrites(at: World) -> None:
    """Twenty scenes of five files: all there, none doubled, no deadlock."""
    project(at, {"scenes": [{"id": f"s{n}"} for n in range(20)]})
    jobs = []
    for n in range(20):
        urls = [at.source.picture(n) for _ in range(5)]
        jobs.append(at.keeping(urls, project_id="home", scene=f"s{n}").job_id)
    todo = [output_id for idx in range(5) for job_id in jobs for output_id in [at.outputs(job_id)[idx]]]
    over, lock = threading.Event(), threading.Lock()

    def work() -> None:
        with at.beside() as deps:
            mine = World(deps, at.conn, at.source, at.database_url)
            while True:
                with lock:
                    if not todo:
                        return
                    output_id = todo.pop(0)
                mine.step("keep", output_id)

    def overwrite() -> None:
        conn = connect(at.database_url)
        number = 0
        while not over.wait(0.01):
            number += 1
            row = conn.execute("SELECT document FROM projects").fetchone()
            assert row is not None
            stale = json.loads(json.dumps(row["document"]))
            stale["title"] = f"edit {number}"
            conn.execute("UPDATE projects SET document = %s", (Jsonb(stale),))
        conn.close()

    application = threading.Thread(target=overwrite)
    application.start()
    try:
        together(*[work] * 8, seconds=200)
    finally:
        over.set()
        application.join(60)
    repeat_failed_steps(at)
    run_reconcile(at)

    scenes = document(at)["scenes"]
    urls = [url for scene in scenes for url in scene["imageUrls"]]
    keys = {row["key"] for row in at.conn.execute("SELECT key FROM outputs WHERE state = 'kept'").fetchall()}
    assert [len(scene["imageUrls"]) for scene in scenes] == [5] * 20
    assert set(urls) == {at.deps.storage.build_asset_url(key) for key in keys}
    assert len(urls) == len(keys) == 100
    assert at.one("SELECT count(*) FROM placements WHERE scene_key IS NOT NULL") == 100
    job_prefixes = [f"renders/{job_id}/" for job_id in jobs]
    stored = [o.key for p in job_prefixes for o in at.deps.storage.list_objects(at.deps.storage.public_bucket, p)]
    assert len(stored) == 200
    assert keys <= set(stored)
    states = at.conn.execute("SELECT DISTINCT state FROM jobs").fetchall()
    assert [row["state"] for row in states] == ["succeeded"]
