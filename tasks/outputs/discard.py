"""The discard step: delete the objects of unpublished outputs and the spooled inputs of settled jobs."""

from functools import partial

from db import discarding, outputs
from moorage.failpoints import failpoint
from moorage.model import Lease, Wake
from tasks.step import Deps, LeaseGuard, commit_step, run_unless_locked


def run(deps: Deps, lease: Lease, guard: LeaseGuard) -> list[Wake]:
    """
    Delete the objects of one output, then record it; returns no wakes.

    The keys cannot be published meanwhile: the row is leased, and `discarding` has a single successor state. Deleting
    again after a crash is harmless.
    """
    output = deps.database.run(lambda conn: outputs.get(conn, lease.row_id))
    if output is None:
        return []
    guard.ensure_held()
    failpoint("discard.before_delete")
    for key in (output.thumb_key, output.key):
        if key is not None:
            deps.storage.delete(deps.storage.public_bucket, key)
    failpoint("discard.after_delete")
    commit_step(deps, lease, guard, lambda conn: discarding.end_discarded(conn, lease), point="discard")
    return []


def delete_spooled_inputs(deps: Deps) -> int:
    inputs = deps.database.run(discarding.list_spooled_inputs)
    for output_id, key in inputs:
        deps.storage.delete(deps.storage.private_bucket, key)
        failpoint("discard.after_spooled")
        clear = partial(discarding.clear_spooled_input, output_id=output_id, key=key)
        run_unless_locked(deps, clear, output_id=str(output_id))
    return len(inputs)
