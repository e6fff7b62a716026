"""Jobs brought to their end by the real steps, without workers: what commands and the audit look at."""

import base64
import dataclasses
import hashlib
import io
import json
from typing import Any
from uuid import UUID

from PIL import Image

from db import leases
from db.connection import Connection
from moorage import ids
from moorage.errors import MoorageError
from moorage.model import Delivery, Lease, Wake
from receiver.deliveries import INSERT, NewDelivery, build_arguments
from tasks.outputs import discard, keep
from tasks.predictions import ingest
from tasks.step import Deps
from tests.integration import command_line as cli
from worker import failures

STEPS = {"ingest": ingest.run, "keep": keep.run, "discard": discard.run}


class Calm:
    """The life of a lease that nobody threatens."""

    def check(self) -> None:
        """Go on."""

    def hand_back_later(self, lease: object, error: object) -> None:
        """Leave it to the lease."""

    def ensure_held(self) -> None:
        """Go on."""


def picture(colour: str = "red") -> str:
    """Return a small picture as a `data:` URI."""
    made = io.BytesIO()
    Image.new("RGB", (16, 12), colour).save(made, "PNG")
    return "data:image/png;base64," + base64.b64encode(made.getvalue()).decode()


def kept(deps: Deps, external_id: str = "abc", outputs: list[str] | None = None, **asked: Any) -> UUID:
    """Register a prediction, deliver its success, do all the work, that of discard too, and return the job's id."""
    job_id = cli.register_one(deps, external_id, **asked).job_id
    work(deps, deliver(deps, {"id": external_id, "status": "succeeded", "output": outputs or [picture()]}))
    discard.delete_spooled_inputs(deps)
    return job_id


def deliver(deps: Deps, body: dict[str, Any] | bytes) -> Wake:
    """Record a webhook as the receiver does, and return its wake."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    delivery_id = ids.uuid7()
    digest = hashlib.sha256(raw).hexdigest()
    args = build_arguments([NewDelivery(delivery_id, "replicate", f"msg_{delivery_id}", {}, raw, digest)])
    deps.database.run(lambda conn: conn.execute(INSERT, args))
    return Wake("ingest", delivery_id)


def work(deps: Deps, *wakes: Wake) -> None:
    """Carry out wakes and what they bring, as a worker does; what fails becomes what it must."""
    waiting = list(wakes)
    while waiting:
        wake = waiting.pop()
        lease = claim(deps, wake)
        try:
            waiting += STEPS[wake.step](deps, lease, Calm())
        except MoorageError as error:
            waiting += failures.record_failure(deps, lease, wake.step, error, Calm())[1]


def claim(deps: Deps, wake: Wake) -> Lease:
    """Claim a row for a worker of the test."""
    who = {"leased_by": f"node/{ids.uuid7()}", "lease_seconds": 30, "max_crashes": 5}
    lease = deps.database.run(lambda conn: leases.claim(conn, wake.step, wake.row_id, **who))
    assert lease is not None
    if wake.step != "ingest":
        return lease
    return with_delivery(deps, lease)


def with_delivery(deps: Deps, lease: Lease) -> Lease:
    """Return the lease of a delivery as the claim of a batch returns it."""
    names = "id, provider, webhook_id, received_at, body, state, external_id, unmatched_until, key_sha256"
    sql = f"SELECT {names} FROM deliveries WHERE id = %(id)s"
    (row,) = deps.database.fetch_all(sql, {"id": lease.row_id})
    return dataclasses.replace(lease, delivery=Delivery(**row))


def loosen(conn: Connection) -> None:
    """Take every rule out of the schema of the test's own database, so that damage can be done."""
    for row in conn.execute(
        "SELECT conrelid::regclass::text AS t, conname AS c FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'f', 'u')"
    ).fetchall():
        conn.execute(f'ALTER TABLE {row["t"]} DROP CONSTRAINT IF EXISTS "{row["c"]}" CASCADE')
    conn.execute("ALTER TABLE placements DROP CONSTRAINT placements_pkey")
    conn.execute("DROP INDEX dead_letters_open")
