"""Pages of deliveries, jobs, predictions, outputs, dead letters and notifications for operators, newest first."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from db.connection import Connection, Row, fetch_all
from db.leases import LIVE
from moorage.errors import Refused

ListKind = Literal["deliveries", "jobs", "predictions", "outputs", "dead_letters", "notifications"]

FILTERS: Final = ("state", "provider", "owner", "project_id", "category", "job_id", "since", "until")
NO_FILTER: Final[Mapping[str, Any]] = dict.fromkeys(FILTERS)
_CLOCK_SLACK_MS: Final = 86_400_000  # between the clock that made an id and that of PostgreSQL

_WORK: Final = "t.state, t.reason, t.run_at, t.attempt, t.leased_by, t.leased_until, t.ended_at"
_JOB: Final = "j.owner, j.project_id"

# kind: the columns, the joins, the time that `since` and `until` compare, and the columns of provider and category
_PARTS: Final[Mapping[ListKind, tuple[str, str, str, str, str]]] = {
    "deliveries": (
        f"t.provider, t.webhook_id, t.external_id, t.prediction_id, p.job_id, {_JOB}, t.received_at, {_WORK},"
        " octet_length(t.body) AS bytes, t.unmatched_until",
        "LEFT JOIN predictions p ON p.id = t.prediction_id LEFT JOIN jobs j ON j.id = p.job_id",
        "received_at", "t.provider", "NULL::text",
    ),
    "jobs": (
        "t.id AS job_id, t.owner, t.project_id, t.kind, t.style, t.state, t.category, t.reason, t.created_at,"
        " t.deadline_at, t.run_at, t.settled_at, t.reopened, l.provider",
        "LEFT JOIN LATERAL (SELECT p.provider FROM predictions p WHERE p.job_id = t.id"
        " ORDER BY p.seq DESC LIMIT 1) l ON true",
        "created_at", "l.provider", "t.category",
    ),
    "predictions": (
        f"t.job_id, {_JOB}, t.provider, t.external_id, t.model, t.category, t.raw_status, t.created_at, t.deadline_at,"
        f" t.polls, t.ended_by, {_WORK}",
        "JOIN jobs j ON j.id = t.job_id", "created_at", "t.provider", "t.category",
    ),
    "outputs": (
        f"t.job_id, {_JOB}, t.prediction_id, p.provider, t.idx, t.path, t.category, t.created_at, t.expires_at,"
        f" t.media, t.format, t.bytes, t.key, {_WORK}",
        "JOIN predictions p ON p.id = t.prediction_id JOIN jobs j ON j.id = t.job_id",
        "created_at", "p.provider", "t.category",
    ),
    "dead_letters": (
        f"t.subject, t.subject_id, t.job_id, {_JOB}, t.provider, t.step, t.category, t.error, t.reason, t.retryable,"
        " t.state, t.created_at, t.closed_at, t.closed_by, t.acknowledged_at, t.acknowledged_by, t.note",
        "LEFT JOIN jobs j ON j.id = t.job_id", "created_at", "t.provider", "t.category",
    ),
    "notifications": (
        f"t.job_id, {_JOB}, t.event_id, t.type, t.category, t.created_at, {_WORK}",
        "JOIN jobs j ON j.id = t.job_id", "created_at", "NULL::text", "t.category",
    ),
}  # fmt: skip


# Statements are never prepared, so that each is planned for the filters that are given. Ids contain the time: a time
# limits the range of ids that is read. An owner's rows are in the order of jobs, so that only a page of them is read.
def _build_list(kind: ListKind, *, by_owner: bool) -> str:
    columns, joins, time, provider, category = _PARTS[kind]
    job = "t" if kind == "jobs" else "j"
    job_id = {"jobs": "t.id", "deliveries": "p.job_id"}.get(kind, "t.job_id")
    before = "t.id < %(before)s"
    if by_owner and kind != "jobs":
        job_of_row = f"(SELECT j.id FROM {kind} t {joins} WHERE t.id = %(before)s)"
        before = f"j.id <= {job_of_row} AND (j.id, t.id) < ({job_of_row}, %(before)s)"
    work = ""
    if live := LIVE.get(kind):  # rows of live states are read by the partial indexes of due and of leased rows
        work = f"""
   AND (%(state)s::text IS NULL OR %(state)s IN ({live}) OR t.ended_at IS NOT NULL)
   AND (%(state)s::text IS NULL OR %(state)s NOT IN ({live}) OR t.lease_token IS NOT NULL
        OR t.state IN ({live}) AND t.lease_token IS NULL)"""
    return f"""
SELECT t.id, {columns} FROM {kind} t {joins}
 WHERE (%(before)s::uuid IS NULL OR {before})
   AND (%(low)s::uuid IS NULL OR t.id >= %(low)s) AND (%(high)s::uuid IS NULL OR t.id <= %(high)s)
   AND (%(since)s::timestamptz IS NULL OR t.{time} >= %(since)s)
   AND (%(until)s::timestamptz IS NULL OR t.{time} < %(until)s)
   AND (%(state)s::text IS NULL OR t.state = %(state)s){work}
   AND (%(provider)s::text IS NULL OR {provider} = %(provider)s)
   AND (%(category)s::text IS NULL OR {category} = %(category)s)
   AND (%(owner)s::text IS NULL OR {job}.owner = ANY(ARRAY[%(owner)s::text]))
   AND (%(project_id)s::text IS NULL OR {job}.project_id = %(project_id)s)
   AND (%(job_id)s::uuid IS NULL OR {job_id} = %(job_id)s)
 ORDER BY {f"{job}.owner DESC, {job}.id DESC, " if by_owner else ""}t.id DESC LIMIT %(limit)s
"""


LISTS: Final[Mapping[ListKind, str]] = {kind: _build_list(kind, by_owner=False) for kind in _PARTS}
LISTS_BY_OWNER: Final[Mapping[ListKind, str]] = {kind: _build_list(kind, by_owner=True) for kind in _PARTS}


def list_page(
    conn: Connection, kind: ListKind, filters: Mapping[str, Any], providers: Collection[str] = (),
    before: UUID | None = None, *, limit: int,
) -> list[Row]:  # fmt: skip
    """
    Return rows that match `filters` (keys of NO_FILTER), newest first, older than the row `before`.

    With an owner they are sorted by job. Raises Refused: the job of `before` is then unknown, if it was deleted; an
    unknown provider, beside the configured `providers`.
    """
    values = {**NO_FILTER, **filters}
    low, high = _build_id(values["since"], -_CLOCK_SLACK_MS, 0), _build_id(values["until"], _CLOCK_SLACK_MS, 2**80 - 1)
    sql = (LISTS if values["owner"] is None else LISTS_BY_OWNER)[kind]
    rows = fetch_all(conn, sql, {**values, "low": low, "high": high, "before": before, "limit": limit})
    if before is not None and not rows and values["owner"] is not None and kind != "jobs":
        row = f"SELECT t.id FROM {kind} t {_PARTS[kind][1]} WHERE t.id = %(before)s AND j.id IS NOT NULL"
        if not fetch_all(conn, row, {"before": before}):
            problem = "is no row of this list, or was deleted: begin with the first page"
            raise Refused(f"{before}, after which the page begins, {problem}", status=409)
    if not rows and values["provider"] is not None:
        require_provider(conn, kind, values["provider"], providers)
    return rows


def require_provider(conn: Connection, kind: ListKind, name: str, providers: Collection[str]) -> None:
    """Raise Refused unless the provider is among `providers`, or was when a row of the kind was stored."""
    values = {**NO_FILTER, "provider": name, "low": None, "high": None, "before": None, "limit": 1}
    if name not in (known := {*providers, "direct"}) and not fetch_all(conn, LISTS[kind], values):
        raise Refused(f"no row names the provider {name}; configured: {', '.join(sorted(known))}", status=422)


def _build_id(at: datetime | None, slack_ms: int, rest: int) -> UUID | None:
    """Return the first or last UUIDv7 of a time."""
    if at is None:
        return None
    milliseconds = min(max(int(at.timestamp() * 1000) + slack_ms, 0), 2**48 - 1)
    return UUID(int=milliseconds << 80 | rest)
