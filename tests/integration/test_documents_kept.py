"""A project's document is the application's: only `imageUrls` is ours to write."""

import json

from db import placements, projects
from db.connection import Connection, Database
from moorage.model import ProjectKey

WIDE = "1" + "0" * 400 + ".5"
LONG = "9" * 5000


def compute(database: Database, project_id: str) -> None:
    def work(conn: Connection) -> None:
        project = projects.lock(conn, ProjectKey("me", project_id))
        assert project is not None
        placements.update_image_urls(conn, project, "https://cdn.example")

    database.run(work)


def test_numbers_that_python_cannot_hold_stay_as_they_are(database: Database, conn: Connection) -> None:
    """jsonb takes numbers of any length; a job must settle, and must not round them, whatever the document holds."""
    document = (
        f'{{"seed": {LONG}, "scale": {WIDE}, "pi": 3.14159265358979323846, "scenes": [{{"imageUrls": ["old"]}}]}}'
    )
    conn.execute("INSERT INTO projects (id, owner, document) VALUES ('p', 'me', %s::jsonb)", [document])

    compute(database, "p")

    row = conn.execute("SELECT document::text AS text, computed_md5 = document_md5 AS sealed FROM projects").fetchone()
    assert row is not None
    assert row["sealed"]
    for number in (LONG, WIDE, "3.14159265358979323846"):
        assert number in row["text"]
    assert '"imageUrls": []' in row["text"]


def test_a_document_without_scenes_is_left_alone(database: Database, conn: Connection) -> None:
    """Scenes that are no list belong to some other idea of the application."""
    for number, document in enumerate(({"scenes": {"a": 1}}, {}, {"scenes": [1, "x", None, []]})):
        conn.execute(
            "INSERT INTO projects (id, owner, document) VALUES (%s, 'me', %s::jsonb)",
            [f"p{number}", json.dumps(document)],
        )

        compute(database, f"p{number}")

        shown = database.run(lambda c, n=number: projects.get(c, ProjectKey("me", f"p{n}")))  # type: ignore[misc]
        assert shown is not None
        assert shown["document"] == document
    assert projects.list_overwritten(conn) == []
