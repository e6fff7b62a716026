"""Registrations: a job and its prediction, which the application submitted itself, in one statement."""

from dataclasses import asdict
from datetime import timedelta

from psycopg.types.json import Jsonb

from db import projects
from db.connection import Connection, QueuedQuery
from db.statements import statement
from moorage.model import Registration

# The prediction first: if its id is known, also to a transaction that is waited for here, there is no job, either.
ADD = f"""
WITH prediction AS (
    INSERT INTO predictions (id, job_id, provider, external_id, model, state, deadline_at, run_at, ended_at)
    VALUES (%(prediction_id)s, %(job_id)s, %(provider)s, %(external_id)s, %(model)s, %(state)s,
            moment() + %(deadline)s,
            CASE WHEN %(state)s = 'running' THEN moment() + least(%(first_poll)s, %(deadline)s) END,
            CASE WHEN %(state)s = 'running' THEN NULL ELSE moment() END)
    ON CONFLICT (provider, external_id) DO NOTHING
    RETURNING id, job_id, state
), job AS (
    INSERT INTO jobs (id, owner, kind, mode, room_type, style, prompt, project_id, scene, partial, notify, notify_url,
                      metadata, idempotency_key, request_sha256, deadline_at, run_at)
    SELECT job_id, %(owner)s, %(kind)s, %(mode)s, %(room_type)s, %(style)s, %(prompt)s, %(project_id)s, %(scene)s,
           %(partial)s, %(notify)s, %(notify_url)s, %(metadata)s, %(idempotency_key)s, %(request_sha256)s,
           moment() + %(deadline)s, moment() + %(deadline)s
      FROM prediction
    RETURNING id, state
), project AS ({projects.ENSURE_OPEN.replace("WHERE %", "FROM prediction WHERE %", 1)})
INSERT INTO events (subject, subject_id, job_id, to_state, reason, actor)
SELECT subject, e.id, job.id, e.state, e.reason, %(actor)s
  FROM job, prediction, LATERAL (VALUES ('job', job.id, job.state, %(provider)s || ' ' || %(external_id)s),
                                        ('prediction', prediction.id, prediction.state, NULL))
                                AS e (subject, id, state, reason)
RETURNING job_id /* planned */
"""


def queue_add(
    conn: Connection, registration: Registration, *, deadline_seconds: float, first_poll_seconds: float, **row: object
) -> QueuedQuery:
    """
    Insert an open job and its prediction, and open its project; no row, nor a change, if the prediction is known.

    `row`: job_id, prediction_id, state (running or succeeded), notify (when the job ends), actor.
    """
    times = {"deadline": timedelta(seconds=deadline_seconds), "first_poll": timedelta(seconds=first_poll_seconds)}
    scene = None if registration.scene is None else Jsonb(registration.scene)
    values = {**asdict(registration), "scene": scene, "metadata": Jsonb(registration.metadata)}
    values |= projects.build_ensure_open(registration)
    return conn.queue(ADD, {**values, **times, **row})


@statement("""
SELECT p.job_id, p.id AS prediction_id, j.state FROM predictions p JOIN jobs j ON j.id = p.job_id
 WHERE p.provider = %(provider)s AND p.external_id = %(external_id)s /* planned */
""")
def queue_find(conn: Connection, provider: str, external_id: str) -> QueuedQuery: ...
