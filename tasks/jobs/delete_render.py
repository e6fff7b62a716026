"""The end of a render: readers see it no more, its files go to `discarding`, and the discard step deletes them."""

from uuid import UUID

from db import jobs, projects, renders, retention
from db.connection import Connection
from moorage import transitions


class JobNotSettled(Exception):
    """The render's job was taken up again: a file may just be added to it."""


def delete_render(conn: Connection, render_id: UUID, *, asset_base: str, actor: str, reason: str) -> bool:
    """
    Delete a render that somebody asks to be deleted; returns whether there is one, deleted before or now.

    Raises:
        StillWorking: its job is not settled.
    """
    if not renders.exists(conn, render_id):
        return False
    job = jobs.lock(conn, render_id)
    if renders.is_deleted(conn, render_id):
        return True
    if job.state not in transitions.TERMINAL_JOB_STATES:
        raise JobNotSettled(f"job {job.id} is {job.state}")
    create_tombstone(conn, render_id, job.project_id, asset_base=asset_base, actor=actor, reason=reason)
    return True


def create_tombstone(
    conn: Connection, render_id: UUID, project_id: str | None, *, asset_base: str, actor: str, reason: str
) -> None:
    """Make a render, whose settled job is locked, a tombstone: outputs, project, results, in the order of locks."""
    retention.discard_render_files(conn, render_id, actor)
    project = projects.lock(conn, project_id) if project_id else None
    retention.mark_render_deleted(conn, render_id, actor, reason)
    if project is not None:
        projects.update_image_urls(conn, project, asset_base)
