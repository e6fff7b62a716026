"""Delete a render: it becomes a tombstone, and the discard step deletes its objects."""

from uuid import UUID

from db import cancellation, jobs, placements, projects, renders, retention
from db.connection import Connection
from moorage import transitions
from moorage.errors import Refused
from moorage.model import ProjectKey, SceneRef


class JobNotSettled(Refused):
    """The render's job was reopened: an output may be added to it."""


def delete_render(conn: Connection, render_id: UUID, *, asset_base: str, actor: str, reason: str) -> bool:
    """Delete a render; returns False if it does not exist. Deleting again has no effect. Raises JobNotSettled."""
    if not renders.exists(conn, render_id):
        return False
    job = jobs.lock(conn, render_id)
    if renders.is_deleted(conn, render_id):
        return True
    if job.state not in transitions.TERMINAL_JOB_STATES:
        raise JobNotSettled("the job was reopened: delete the render once the job is settled", status=409)
    create_tombstone(conn, render_id, job.project, job.scene, asset_base=asset_base, actor=actor, reason=reason)
    return True


def create_tombstone(
    conn: Connection, render_id: UUID, key: ProjectKey | None, scene: SceneRef | None, *,
    asset_base: str, actor: str, reason: str
) -> None:  # fmt: skip
    """Turn a render whose settled job is locked into a tombstone. Lock order: outputs, project, results."""
    retention.discard_render_files(conn, render_id, actor)
    cancellation.cancel_waiting_outputs(conn, render_id, reason=reason, actor=actor)  # deferred ones
    project = projects.lock(conn, key) if key else None
    retention.mark_render_deleted(conn, render_id, actor, reason)
    if project is not None:
        placements.update_scene(conn, project, scene, asset_base)
