"""Discard: delete the objects of an output that its job does not publish, and spooled inputs of settled jobs."""

from functools import partial

from db import discarding, outputs
from db.connection import Connection
from moorage.failpoints import failpoint
from moorage.model import Lease, Wake
from tasks.step import Deps, LeaseGuard, commit_step


def run(deps: Deps, lease: Lease, pulse: LeaseGuard) -> list[Wake]:
    """
    Delete one output's objects, then record it.

    The row is leased and `discarding` has one way out, so nobody can publish the keys meanwhile; deleting again after
    a crash does no harm.
    """
    output = deps.database.run(lambda conn: outputs.get(conn, lease.row_id))
    if output is None:
        return []
    pulse.before_write()
    failpoint("discard.before_delete")
    for key in (output.thumb_key, output.key):
        if key is not None:
            deps.storage.delete(deps.storage.public_bucket, key)
    failpoint("discard.after_delete")

    def record(conn: Connection) -> None:
        discarding.end_discarded(conn, lease)

    commit_step(deps, lease, pulse, record)
    failpoint("discard.after_record")
    return []


def delete_spooled_inputs(deps: Deps) -> int:
    """Delete input files of settled jobs from the private bucket; returns how many."""
    found = deps.database.run(discarding.list_spooled_inputs)
    for output_id, key in found:
        deps.storage.delete(deps.storage.private_bucket, key)
        failpoint("discard.after_spooled")
        deps.database.run(partial(discarding.clear_spooled_input, output_id=output_id, key=key))
    return len(found)
