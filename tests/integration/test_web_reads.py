"""Reading jobs and projects, with granian and PostgreSQL."""

import asyncio
import json
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from db import dead_letters, jobs, leases, outputs, predictions
from db.connection import Connection
from moorage.model import Media, StoredOutput, Thumbnail
from moorage.provider_types import OutputFile, PredictionReport
from moorage.retry_policy import DeadLetterDecision
from tasks.jobs import settle
from tasks.predictions import reports
from tests.integration import web_process as wp
from web.services.database import DatabaseThreads

SHA = "5e" * 32


def hear(conn: Connection, made: wp.Answer, *found: OutputFile, status: str = "succeeded") -> None:
    """Apply a provider's report, as ingest does."""
    report = PredictionReport(made.fields["external_id"], status, status, found, error="out of memory")  # type: ignore[arg-type]
    hearing = reports.ReportSource("webhook", datetime.now(UTC), "test", wp.BASE, 3600)
    with conn.transaction():
        job = jobs.lock(conn, UUID(made.fields["job_id"]))
        reports.apply_report(conn, job, predictions.lock(conn, UUID(made.fields["prediction_id"])), report, hearing)


def end(conn: Connection, made: wp.Answer, idx: int, why: DeadLetterDecision | None = None) -> str:
    """Keep an output, or dead-letter it, and settle its job if it was the last; return the key."""
    job_id = UUID(made.fields["job_id"])
    row = outputs.list_by_job(conn, job_id)[idx]
    with conn.transaction():
        job = jobs.lock(conn, job_id)
        lease = leases.claim(conn, "keep", row["id"], leased_by="test/1", lease_seconds=30, max_crashes=5)
        assert lease
        if why:
            outputs.end_dead(conn, lease, why.category, why.reason)
            dead_letters.add(conn, "output", row["id"], why, step="keep", actor="test")
        else:
            outputs.end_kept(conn, lease, kept(f"renders/{job_id}/{idx}"))
        settle.settle_if_last(conn, job, asset_base=wp.BASE, actor="test")
    return f"{wp.BASE}/renders/{job_id}/{idx}"


def kept(stem: str) -> StoredOutput:
    thumb = Thumbnail(b"webp", "7b" * 32, 400, 300, "#102030")
    return StoredOutput(
        Media("image", "png", "image/png", "png", 1024, 768, 1),
        9,
        SHA,
        f"{stem}.png",
        thumb,
        f"{stem}_thumb.webp",
        None,
    )


def test_a_partial_job_shows_its_files_and_its_errors(front: wp.Front, mine: Connection) -> None:
    """Applications depend on it: where the files are, and why one is missing."""
    made = front.register(external_id="job_partial", scene=2**53 + 1, project_id="reads")
    address = "https://replicate.delivery/a.png?signature=secret"
    hear(
        mine,
        made,
        OutputFile("output[0]", address),
        OutputFile("output[1]", f"{address}2"),
        OutputFile("output[2]", f"{address}3"),
    )
    first = end(mine, made, 0)
    keeping = front.get(made.headers["location"]).fields
    end(mine, made, 1, DeadLetterDecision("VALIDATION_FAILED", "InvalidMedia", "the PNG ends early", retryable=False))
    end(mine, made, 2, DeadLetterDecision("DOWNLOAD_FAILED", "OutputGone", "404 Not Found", retryable=True))

    shown = front.get(made.headers["location"])

    job = shown.fields
    dead = [row["id"] for row in outputs.list_by_job(mine, UUID(job["job_id"]))][1:]
    assert shown.status == 200
    assert shown.headers["cache-control"] == "no-store"
    assert (keeping["state"], keeping["render_id"], keeping["variants_created"]) == ("keeping", None, 0)
    assert [output["state"] for output in keeping["outputs"]] == ["kept", "waiting", "waiting"]
    assert (job["state"], job["render_id"], job["variants_created"]) == ("partial", job["job_id"], 1)
    assert (job["scene"], job["project_id"], job["policy"]) == (2**53 + 1, "reads", "keep")
    assert job["variants"] == [
        {
            "idx": 0,
            "is_cover": True,
            "media": "image",
            "content_type": "image/png",
            "bytes": 9,
            "sha256": SHA,
            "width_px": 1024,
            "height_px": 768,
            "frames": 1,
            "duration_s": None,
            "url": f"{first}.png",
            "thumb_url": f"{first}_thumb.webp",
            "thumb_width_px": 400,
            "thumb_height_px": 300,
            "thumb_missing": None,
            "color": "#102030",
            "is_placeholder": False,
        }
    ]
    assert [
        (e["type"], e["message"], e["job_id"], e["prediction_id"], e["retryable"], e["subject_id"], e["idx"])
        for e in job["errors"]
    ] == [
        (
            "VALIDATION_FAILED",
            "the PNG ends early",
            job["job_id"],
            made.fields["prediction_id"],
            False,
            str(dead[0]),
            1,
        ),
        ("DOWNLOAD_FAILED", "404 Not Found", job["job_id"], made.fields["prediction_id"], True, str(dead[1]), 2),
    ]
    assert job["predictions"][0]["state"] == "succeeded"
    assert "secret" not in json.dumps(job)  # a provider's address may carry its signature


def test_a_failed_job_shows_the_reason(front: wp.Front, mine: Connection) -> None:
    """The provider's message is shown, and nothing is published."""
    made = front.register(external_id="job_failed")
    hear(mine, made, status="failed")

    job = front.get(made.headers["location"]).fields

    (error,) = job["errors"]
    assert (job["state"], job["category"], job["render_id"], job["variants"]) == ("failed", "PROVIDER_FAILED", None, [])
    assert (error["type"], error["message"], error["retryable"]) == ("PROVIDER_FAILED", "out of memory", False)
    assert error["prediction_id"] == made.fields["prediction_id"]


def test_a_deleted_render_shows_no_files(front: wp.Front, mine: Connection) -> None:
    """A deleted file must not be reachable through the job."""
    made = front.register(external_id="job_deleted")
    hear(mine, made, OutputFile("output", "https://replicate.delivery/a.png"))
    end(mine, made, 0)
    mine.execute("UPDATE renders SET deleted_at = moment() WHERE id = %s", [made.fields["job_id"]])

    job = front.get(made.headers["location"]).fields

    assert (job["render_id"], job["variants_created"], job["variants"]) == (None, 0, [])
    assert job["state"] == "succeeded"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs/01890000-0000-7000-8000-000000000001",
        "/v1/jobs/7",
        "/v1/jobs/%7B01890000-0000-7000-8000-000000000000%7D",
        "/v1/jobs/%00",
        "/v1/jobs/%FF",
        "/v1/jobs/",
        "/v1/jobs/..%2Fjobs",
        "/v1/projects/nobody",
        "/v1/projects/%00",
        "/v1/projects/%FF",
        "/v1/projects/a/b",
        "/v1/assets/renders/01890000-0000-7000-8000-000000000001/0?v=1&v=2",  # without a query, all names are ignored
    ],
)
def test_an_unknown_id_is_404(front: wp.Front, path: str) -> None:
    """No spelling of an id may cause a 500."""
    missing = front.get(path)

    assert missing.status == 404
    assert missing.headers["content-type"] == "application/problem+json"


def test_a_project_shows_its_files_after_its_document_was_overwritten(front: wp.Front, mine: Connection) -> None:
    """An application that wrote back an old copy must not read its own mistake, nor rounded numbers."""
    made = front.register(external_id="job_scene", project_id="film", scene="s2")
    lost = front.register(external_id="job_no_scene", project_id="film", scene="cut")
    document = {"scenes": [{"id": "s1"}, {"id": "s2", "imageUrls": ["stale"]}], "seed": 2**53 + 1}
    mine.execute("UPDATE projects SET document = %s WHERE id = 'film'", [Jsonb(document)])
    urls = []
    for job in (made, lost):
        hear(mine, job, OutputFile("output", "https://replicate.delivery/a.png"))
        urls.append(f"{end(mine, job, 0)}.png")
    mine.execute("UPDATE projects SET document = %s WHERE id = 'film'", [Jsonb(document)])

    shown = front.get("/api/v1/projects/film")

    assert shown.status == 200
    assert shown.headers["cache-control"] == "no-store"
    assert shown.fields["document"] == {
        "scenes": [{"id": "s1"}, {"id": "s2", "imageUrls": [urls[0]]}],
        "seed": 2**53 + 1,
    }
    assert shown.fields["unplaced"] == [
        {"render_id": lost.fields["job_id"], "idx": 0, "scene": "cut", "url": urls[1]},
    ]
    assert (shown.fields["project_id"], shown.fields["owner"]) == ("film", "ada")


def test_the_first_registration_creates_an_empty_project(front: wp.Front) -> None:
    """Scenes may be added after their files: the project must exist to be written to."""
    front.register(external_id="job_new_project", project_id="büro & co")

    shown = front.get("/v1/projects/b%C3%BCro%20%26%20co")

    assert shown.fields["document"] == {"scenes": []}
    assert shown.fields["project_id"] == "büro & co"


def test_a_read_of_several_statements_uses_one_snapshot(database_url: str, conn: Connection) -> None:
    """A job settled between two statements must not be shown as settled without its files."""

    def work(mine: Connection) -> list[int]:
        seen = []
        for _ in range(2):
            row = mine.execute("SELECT count(*) AS n FROM projects").fetchone()
            seen.append(row["n"] if row else -1)
            conn.execute("INSERT INTO projects (id, owner) VALUES (%s, 'ada')", [str(uuid4())])
        return seen

    async def read() -> list[int]:
        threads = DatabaseThreads(database_url)
        try:
            return await threads.read(work)
        finally:
            await threads.close()

    assert asyncio.run(read()) == [0, 0]
