"""Jobs with a chain, driven without the submit step: planned predictions are said to run, and heard of by webhook."""

import secrets
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from db import submissions
from moorage import ids
from moorage.model import FallbackEntry, Wake
from tests.integration.core import World, prediction


def started(at: World, entries: int = 3, **columns: Any) -> UUID:
    """Insert an open job with a chain of so many entries, the first of them planned; returns its id."""
    job_id = ids.uuid7()
    chain = [{"provider": "replicate", "model": f"m{n}", "input": {}, "seconds": 60.0} for n in range(entries)]
    given = {"kind": "image", "project_id": None, "scene": None, "placeholder": False, "partial": "keep", **columns}
    at.conn.execute(
        "INSERT INTO jobs (id, owner, kind, fallback_chain, placeholder, partial, project_id, scene, deadline_at,"
        " run_at) VALUES (%s, 'ann', %s, %s, %s, %s, %s, %s, moment() + '1 hour', moment() + '1 hour')",
        (job_id, given["kind"], Jsonb(given.get("chain", chain)), given["placeholder"], given["partial"],
         given["project_id"], given["scene"]),
    )  # fmt: skip
    at.conn.execute(
        "INSERT INTO events (subject, subject_id, job_id, to_state, actor) VALUES ('job', %s, %s, 'open', 'test')",
        (job_id, job_id),
    )
    at.deps.database.run(
        lambda conn: submissions.plan(
            conn, ids.uuid7(), job_id, 0, FallbackEntry(**chain[0]), reason=None, actor="test"
        )
    )
    return job_id


def planned(at: World, job_id: UUID) -> UUID:
    """Return the one prediction of a job that is planned."""
    found = at.conn.execute("SELECT id FROM predictions WHERE job_id = %s AND state = 'planned'", (job_id,)).fetchall()
    assert len(found) == 1, "not one prediction is planned"
    return UUID(str(found[0]["id"]))


def running(at: World, job_id: UUID, seconds: float = 60.0) -> tuple[UUID, str]:
    """Have the planned prediction of a job run; returns its id and the provider's."""
    prediction_id, external_id = planned(at, job_id), secrets.token_hex(8)
    for before, after in (("planned", "submitting"), ("submitting", "running")):
        at.conn.execute(
            "UPDATE predictions SET state = %s, external_id = %s, submitted_at = moment(), run_at = moment() + '1 h',"
            " deadline_at = moment() + make_interval(secs => %s) WHERE id = %s",
            (after, external_id if after == "running" else None, seconds, prediction_id),
        )
        at.conn.execute(
            "INSERT INTO events (subject, subject_id, job_id, from_state, to_state, actor)"
            " VALUES ('prediction', %s, %s, %s, %s, 'test')",
            (prediction_id, job_id, before, after),
        )
    return prediction_id, external_id


def hear(at: World, external_id: str, status: str, output: Any = None, **more: Any) -> list[Wake]:
    """Deliver a webhook and ingest it."""
    return at.step("ingest", at.delivered(prediction(external_id, status, output, **more)))


def time_out(at: World, prediction_id: UUID, external_id: str) -> list[Wake]:
    """Let the time limit of a running prediction pass, and poll it."""
    at.source.predictions[external_id] = prediction(external_id, "processing")
    at.conn.execute("UPDATE predictions SET deadline_at = moment(), run_at = moment() WHERE id = %s", (prediction_id,))
    return at.step("poll", prediction_id)


def tried(at: World, job_id: UUID) -> list[tuple[str, int | None, str]]:
    """Return provider, entry and state of a job's predictions, in their order."""
    sql = "SELECT provider, entry, state FROM predictions WHERE job_id = %s ORDER BY seq"
    return [(row["provider"], row["entry"], row["state"]) for row in at.conn.execute(sql, (job_id,)).fetchall()]


def exhausted(at: World, **columns: Any) -> tuple[UUID, str]:
    """Return a job whose A timed out, B failed and C failed, and the provider's id of A, whose late success counts."""
    job_id = started(at, **columns)
    first, external_id = running(at, job_id)
    time_out(at, first, external_id)
    for _ in range(2):
        _, failing = running(at, job_id)
        hear(at, failing, "failed", error="out of memory")
    return job_id, external_id


def kept(at: World, job_id: UUID) -> None:
    """Keep all outputs of a job that wait."""
    for output_id in [output for output in at.outputs(job_id) if at.state("outputs", output) == "waiting"]:
        at.step("keep", output_id)


def shown(at: World, job_id: UUID) -> list[tuple[int, bool, bool]]:
    """Return what readers see of a render: idx, whether it is a placeholder, whether it is the cover."""
    sql = "SELECT idx, is_placeholder, is_cover FROM variants WHERE render_id = %s ORDER BY idx"
    return [(v["idx"], v["is_placeholder"], v["is_cover"]) for v in at.conn.execute(sql, (job_id,)).fetchall()]
