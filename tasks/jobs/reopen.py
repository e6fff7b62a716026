"""Add a file to a job that no longer waited for it, after its bytes were stored."""

from db import deferral, jobs
from db.connection import Connection
from moorage.model import Job, Output, Wake
from tasks.jobs import cancel, settle


def choose_again(conn: Connection, job: Job, output: Output, *, asset_base: str, actor: str) -> list[Wake]:
    """
    Choose the prediction of a deferred output that was kept, and settle the locked job again; returns wakes.

    With policy `discard` the job waits once more for the other deferred files: published are all or none.
    """
    reason = f"{output.path} could be stored after all"
    jobs.change_state(conn, job, "keeping", actor=actor, chosen_id=output.prediction_id, reason=reason)
    wakes = cancel.cancel_predictions(conn, job.id, reason="files of an earlier prediction were stored", actor=actor)
    if job.partial == "discard":
        due = deferral.resume(conn, job.id, output.prediction_id, actor)
    else:
        due = deferral.make_due(conn, job.id)
    wakes += [Wake("keep", output_id) for output_id in due]
    return wakes + settle.settle_if_last(conn, jobs.lock(conn, job.id), asset_base=asset_base, actor=actor)
