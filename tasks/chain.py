"""What follows a prediction that brought nothing: the next entry of the job's chain, else the job's failure."""

from db import jobs, predictions, submits
from db.connect import Connection
from moorage.lifecycle import GiveUp
from moorage.model import Job, Wake


def go_on(conn: Connection, job: Job, why: GiveUp, *, actor: str) -> list[Wake]:
    """
    Go on with a locked open job one of whose predictions has just ended without files; returns wakes.

    Nothing happens while another prediction is still awaited. Otherwise the next entry of the chain is planned, and
    after the last the job fails for the reason given.
    """
    if job.state != "open" or predictions.awaited(conn, job.id):
        return []
    chain = submits.entries(job)
    last = submits.last_entry(conn, job.id)
    following = 0 if last is None else last + 1
    if following < len(chain):
        planned = submits.plan(conn, job.id, following, chain[following], reason=why.reason, actor=actor)
        return [Wake("submit", planned)]
    jobs.move(conn, job, "failed", actor=actor, category=why.category, reason=why.reason)
    return []
