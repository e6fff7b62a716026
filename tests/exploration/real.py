"""The same steps on real PostgreSQL, by the functions of db/ and tasks/, and the rows read back as the model's."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

from db import discarding, leases, orphans, output_claims, outputs, predictions
from db import jobs as jobs_table
from db.connection import BEGIN, Connection, connect, fetch_one
from moorage import ids
from moorage.errors import LeaseLost, Refused
from moorage.model import Lease, Media, StoredOutput, Thumbnail, WorkTable
from moorage.retry_policy import DeadLetterDecision, Retry, RetryPolicy
from storage import keys
from tasks.jobs import replay
from tasks.outputs import keep
from tasks.predictions import ingest, poll
from tasks.step import Deps
from tasks.sweeps import reconcile
from tests.exploration.moves import Label
from tests.exploration.state import (
    D0,
    DELIVERIES,
    JOB,
    O0,
    OUTPUTS,
    P0,
    PREDICTIONS,
    SERVER,
    Db,
    Job,
    Row,
    State,
)
from tests.exploration.statements import ERRORS, MAX_CRASHES, POLICY
from tests.integration import command_line as cli
from tests.integration import kept_world
from worker import failures

Work = Callable[[Connection], object]
IMAGE = Media("image", "png", "image/png", "png", width_px=1, height_px=1, frames=1)
SHA = "ab" * 32
TABLE: dict[int, WorkTable] = {
    **dict.fromkeys(PREDICTIONS, "predictions"),
    **dict.fromkeys(DELIVERIES, "deliveries"),
    **dict.fromkeys(OUTPUTS, "outputs"),
}
ROWS = """
SELECT t.id, t.state, t.lease_token, t.attempt,
       t.crashes, {key} AS key, {stopped} AS stopped, {deferred} AS deferred, {deferred} AND {untried} AS reserve,
       EXISTS (SELECT FROM dead_letters d WHERE d.subject_id = t.id AND d.state = 'open') AS letter
  FROM {table} t WHERE t.id = ANY(%(ids)s)
"""
RENDER = """
SELECT r.id AS render, coalesce(array_agg(v.output_id) FILTER (WHERE v.output_id IS NOT NULL), '{}') AS variants
  FROM renders r LEFT JOIN render_variants v ON v.render_id = r.id
 WHERE r.id = %(id)s GROUP BY r.id
"""
# The expiry is not so soon that it decides about an attempt.
MAKE_MOST_URGENT = """
WITH due AS (SELECT id FROM outputs WHERE state = 'waiting' AND lease_token IS NULL FOR UPDATE SKIP LOCKED)
UPDATE outputs o SET expires_at = CASE o.id WHEN %(id)s THEN moment() + interval '30 min' END
  FROM due WHERE o.id = due.id RETURNING o.id
"""


class Real:
    """A job with two predictions and their webhooks, in the state that `scenarios.awaiting` describes."""

    def __init__(self, deps: Deps, name: str, *, partial: str = "keep") -> None:
        policy = RetryPolicy(max_errors=POLICY.max_errors, wait_base_seconds=0.0, internal_wait_seconds=0.0)
        settings = deps.settings.with_constants(max_crashes=MAX_CRASHES)
        self.deps = dataclasses.replace(deps, policy=policy, settings=settings)
        self.name = name
        first = cli.register_one(self.deps, f"{name}-0", partial=partial)
        self.job_id = first.job_id
        self.ids: dict[int, UUID] = {P0: first.prediction_id, P0 + 1: self._second()}
        for slot, files in ((D0, 2), (D0 + 1, 1)):
            body = {"id": f"{name}-{slot - D0}", "status": "succeeded", "output": [_url(n) for n in range(files)]}
            self.ids[slot] = kept_world.deliver(self.deps, body).row_id
        self.leases: dict[int, Lease] = {}  # by the model's token
        self.tokens: dict[UUID, int] = {}
        self.late: set[UUID] = set()  # tokens whose time is over: no row is written for time to pass
        self.server: Connection | None = None

    def _second(self) -> UUID:
        made = ids.uuid7()
        insert = """
INSERT INTO predictions (id, job_id, seq, provider, external_id, state, deadline_at, run_at)
VALUES (%(id)s, %(job_id)s, 1, 'replicate', %(name)s, 'running', moment() + interval '10 min', moment())
RETURNING id
"""
        self.deps.database.fetch_all(insert, {"id": made, "job_id": self.job_id, "name": f"{self.name}-1"})
        due = "UPDATE predictions SET run_at = moment() WHERE job_id = %(id)s"
        self.deps.database.run(lambda conn: conn.execute(due, {"id": self.job_id}))
        return made

    # --- reading back -------------------------------------------------------------------------------------------

    def read(self, conn: Connection) -> Db:
        """Return the committed rows in the model's words."""
        self._find_outputs(conn)
        found: dict[UUID, Row] = {}
        for table in ("predictions", "deliveries", "outputs"):
            key = "t.key" if table == "outputs" else "NULL"
            stopped = {
                "predictions": "t.cancel_reason IS NOT NULL",
                "outputs": "t.category IS NOT DISTINCT FROM 'CANCELLED'",
            }
            deferred = "t.state = 'waiting' AND t.deferred_at IS NOT NULL" if table == "outputs" else "false"
            columns = {"key": key, "stopped": stopped.get(table, "false"), "deferred": deferred}
            sql = ROWS.format(table=table, untried="t.category IS NULL" if table == "outputs" else "true", **columns)
            for row in conn.execute(sql.encode(), {"ids": list(self.ids.values())}):
                found[row["id"]] = self._as_row(row)
        rows = [found.get(self.ids.get(slot, UUID(int=0)), Row()) for slot in range(1, O0 + len(OUTPUTS))]
        return (self._job(conn), *rows)

    def _as_row(self, row: dict[str, Any]) -> Row:
        told = keys.parse_render_key(row["key"]) if row["key"] else None
        start = told.token_start if isinstance(told, keys.RenderKey) else None
        key = next((name for token, name in self.tokens.items() if token.hex[:8] == start), 0)
        lease = row["lease_token"]
        token = self.tokens[lease] if lease else 0
        over, counts = lease in self.late, (row["attempt"], row["crashes"])
        return Row(row["state"], token, over, *counts, key, row["letter"], row["stopped"], row["deferred"],
                   row["reserve"])  # fmt: skip

    def _job(self, conn: Connection) -> Job:
        row = fetch_one(conn, "SELECT state, chosen_id, partial FROM jobs WHERE id = %(id)s", {"id": self.job_id})
        render = fetch_one(conn, RENDER, {"id": self.job_id})
        assert row is not None
        slots = {row_id: slot for slot, row_id in self.ids.items()}
        variants = tuple(sorted(slots[v] for v in render["variants"])) if render else ()
        return Job(row["state"], slots.get(row["chosen_id"], -1), render is not None, variants, row["partial"])

    def _find_outputs(self, conn: Connection) -> None:
        sql = "SELECT id, prediction_id, path FROM outputs WHERE job_id = %(id)s"
        for row in conn.execute(sql, {"id": self.job_id}):
            place = 0 if row["path"] in ("output", "output[0]") else 1
            slot = O0 + place if row["prediction_id"] == self.ids[P0] else O0 + 2
            self.ids[slot] = row["id"]

    def is_orphan(self, conn: Connection, token: int) -> bool:
        """Return whether the orphan sweep would take the object that a lease stored for an output."""
        key, lease = self._key(self.leases[token]), self.leases[token]
        told = keys.parse_render_key(key)
        assert isinstance(told, keys.RenderKey)
        start = lease.token.hex[:8]
        return orphans.find_reference(conn, key, told.render_id, told.idx, start, lock=False) == "unreferenced"

    # --- doing --------------------------------------------------------------------------------------------------

    def do(self, label: Label, before: State, after: State) -> None:
        """Carry one step of the model out."""
        actor = before.actors[label.who]
        name, _, how = label.what.partition(": ")
        if label.what.startswith("claims"):
            self._claim(label, after)
        elif how == "COMMIT without an answer":
            self._leave_open(self.transaction(name, label.slot, actor.token, actor.memo))
        elif name == "poison":  # where it is too late it quietly does nothing
            self._run(self.transaction(name, label.slot, 0, None), lost=False)
        elif how in ("COMMIT", "rolls back, no row"):
            self._run(self.transaction(name, label.slot, actor.token, actor.memo), lost=how != "COMMIT")
        elif label.who == SERVER:
            self._end(label.what == "commits")
        else:
            self._small(label, actor.token, before)

    def transaction(self, name: str, slot: int, token: int, memo: Any) -> Work:
        """Return a whole transaction as the real functions run it."""
        deps, lease = self.deps, self.leases.get(token)
        if name in ("poison", "check", "replay"):
            return self._unleased(name, slot)
        assert lease is not None
        if name == "record":
            kept = self._kept(lease)
            return lambda conn: self._record(conn, lease, slot, kept)
        if name == "poll":
            return lambda conn: self._poll(conn, lease, memo)
        if name == "discarded":
            return lambda conn: discarding.end_discarded(conn, lease)
        if name == "ingest":
            return lambda conn: self._ingest(conn, lease)
        if isinstance(memo, Retry) and memo.kind == "storage_failed":
            return lambda conn: leases.reschedule(
                conn, lease, wait_seconds=0, reason=memo.reason, counts_as_error=False
            )
        name = memo.error if isinstance(memo, DeadLetterDecision) else "DownloadInterrupted"
        error = next(e for e in ERRORS.values() if type(e).__name__ == name)
        return lambda conn: failures._record(conn, deps, lease, "keep", error)

    def _unleased(self, name: str, slot: int) -> Work:
        deps = self.deps
        if name == "check":
            return self._check
        row_id = self.ids[slot]
        if name == "replay":
            return lambda conn: replay.replay_dead_letter(conn, self._letter(conn, row_id), "person")
        step = leases.STEP_BY_TABLE[TABLE[slot]]
        return lambda conn: failures._dead_letter_poison(conn, deps, step, row_id, "node/poison")

    def _claim(self, label: Label, after: State) -> None:
        actor, row_id = after.actors[label.who], self.ids[label.slot]
        limits: Any = {"lease_seconds": 30, "max_crashes": MAX_CRASHES}
        limits["leased_by"] = f"node/{self.name}-{actor.token}"
        if actor.doing == "keep":  # the model claims any output: the one it has chosen is made the most urgent
            self.deps.database.fetch_all(MAKE_MOST_URGENT, {"id": row_id})
            lease, _ = output_claims.claim(self.deps.database, row_id, **limits)
        else:
            step = "discard" if label.slot in OUTPUTS else leases.STEP_BY_TABLE[TABLE[label.slot]]
            lease = leases.claim(self.deps.database, step, row_id, **limits)
        assert lease is not None, f"{label}: an empty claim"
        assert lease.row_id == row_id
        lease = kept_world.with_delivery(self.deps, lease) if label.slot in DELIVERIES else lease
        self.leases[actor.token] = lease
        self.tokens[lease.token] = actor.token

    def _run(self, work: Work, *, lost: bool) -> None:
        try:
            self.deps.database.run(work)
        except (LeaseLost, Refused):
            assert lost, "the real transaction was refused, the model's was not"
        else:
            assert not lost, "the model's transaction was refused, the real one was not"

    def _small(self, label: Label, token: int, before: State) -> None:
        row_id, table = self.ids[label.slot], TABLE[label.slot]
        holder = self.leases.get(before.db[label.slot].token) if label.slot != JOB else None
        database = self.deps.database
        if label.what.startswith(("stalls", "is killed")) and holder and before.db[label.slot].token == token:
            self.late.add(holder.token)
        elif label.what.startswith("releases") and holder:
            freed = database.run(lambda conn: leases.release_held_by(conn, holder.leased_by, "its process died"))
            assert freed == [(table, row_id)]
        elif label.what == "postpones":
            database.run(lambda conn: (keep._postpone(conn, self.leases[token]), self._make_due(conn, label.slot)))
        elif label.what.startswith("renews"):
            self.late.discard(self.leases[token].token)
            assert database.run(lambda conn: leases.renew(conn, self.leases[token], lease_seconds=30))
        elif label.what.startswith("asks"):
            held = database.run(lambda conn: leases.is_current(conn, self.leases[token]))
            assert held == (before.db[label.slot].token == token)

    def _leave_open(self, work: Work) -> None:
        """Run a transaction whose COMMIT is on its way when its client loses the connection."""
        self.server = another_connection(self.deps)
        self.server.execute(BEGIN.format(lock_ms=10_000))
        work(self.server)

    def _end(self, commits: bool) -> None:
        assert self.server is not None
        self.server.execute("COMMIT" if commits else "ROLLBACK")
        self.close()

    def close(self) -> None:
        """Close the connection of a transaction that was left open."""
        if self.server is not None:
            self.server.close()
        self.server = None

    # --- parts --------------------------------------------------------------------------------------------------

    def _poll(self, conn: Connection, lease: Lease, memo: str) -> object:
        job = jobs_table.lock(conn, self.job_id)
        prediction = predictions.lock(conn, lease.row_id)
        report = None
        provider = self.deps.providers["replicate"]
        if memo == "finished":
            files = 2 if lease.row_id == self.ids[P0] else 1
            report = provider.parse_report(_body(str(prediction.external_id), files))
        else:
            long_ago = "UPDATE predictions SET {0} = moment() - interval '1 s' WHERE id = %(id)s"
            column = "output_until" if prediction.state == "abandoned" else "deadline_at"
            conn.execute(long_ago.format(column).encode(), {"id": lease.row_id})
            prediction = predictions.lock(conn, lease.row_id)
        leased = poll.LeasedPrediction(conn, lease, job, prediction)
        answered = poll._apply_result(leased, self.deps.asset_base, poll.PollResult(provider, None, report))
        conn.execute("UPDATE predictions SET run_at = moment() WHERE id = %s AND run_at IS NOT NULL", [lease.row_id])
        self._make_reserve_due(conn)
        return answered

    def _record(self, conn: Connection, lease: Lease, slot: int, kept: StoredOutput) -> object:
        recorded = keep._record(conn, self.deps, lease, self._output(conn, slot), kept)
        self._make_due(conn, slot)
        return recorded

    def _make_due(self, conn: Connection, slot: int) -> None:
        conn.execute("UPDATE outputs SET run_at = moment() WHERE id = %s AND run_at > moment()", [self.ids[slot]])

    def _make_reserve_due(self, conn: Connection) -> None:
        conn.execute("UPDATE outputs SET run_at = moment() WHERE job_id = %s AND run_at > moment()", [self.job_id])

    def _check(self, conn: Connection) -> object:
        conn.execute("UPDATE jobs SET run_at = moment() WHERE id = %s AND run_at IS NOT NULL", [self.job_id])
        return reconcile.check_job(conn, self.job_id, self.deps, "sweep")

    def _ingest(self, conn: Connection, lease: Lease) -> object:
        applied = ingest.apply_one(conn, self.deps, ingest._parse(self.deps, lease))
        self._make_reserve_due(conn)
        return applied

    def _output(self, conn: Connection, slot: int) -> Any:
        return outputs.get(conn, self.ids[slot])

    def _key(self, lease: Lease) -> str:
        idx = self.deps.database.run(lambda conn: outputs.get(conn, lease.row_id))
        assert idx is not None
        return keys.build_original_key(self.job_id, idx.idx, SHA, lease.token, "png")

    def _kept(self, lease: Lease) -> StoredOutput:
        thumb = Thumbnail(b"x", SHA, 1, 1)
        key = self._key(lease)
        return StoredOutput(IMAGE, 1, SHA, key, thumb, key.replace(".png", "_thumb.webp"), None)

    def _letter(self, conn: Connection, row_id: UUID) -> UUID:
        row = fetch_one(
            conn, "SELECT id FROM dead_letters WHERE subject_id = %(id)s AND state = 'open'", {"id": row_id}
        )
        assert row is not None
        letter: UUID = row["id"]
        return letter


def another_connection(deps: Deps) -> Connection:
    """Return another connection to the same database, as another process has one."""
    return connect(deps.settings.database_url.get_secret_value())


def _url(number: int) -> str:
    return f"https://replicate.delivery/{number}.png"


def _body(external_id: str, files: int) -> bytes:
    body = {"id": external_id, "status": "succeeded", "output": [_url(n) for n in range(files)]}
    return json.dumps(body).encode()
