"""Checks of rules 2 and 6: every live row is due at some time, and every lease ends."""

from collections.abc import Mapping
from typing import Final

from db.audit.check import Check, build_checks
from db.leases import SUBJECT, UNPAUSED
from db.submission_turns import NEEDS_NO_PLACE

_LIVE: Final = {
    "deliveries": "t.state IN ('new', 'unmatched')",
    "jobs": "t.state IN ('open', 'keeping')",
    "predictions": "t.state IN ('planned', 'submitting', 'running', 'abandoned')",
    "outputs": "t.state IN ('waiting', 'discarding')",
    "notifications": "t.state = 'waiting'",
}
# Paused rows wait for an operator, planned ones perhaps for a place; leased rows have a check of their own.
_HAS_PLACE: Final = {"predictions": f"(state <> 'planned' OR {NEEDS_NO_PLACE})"}
_CLAIMABLE: Final = {"jobs": "true"} | {
    table: f"""t.id IN (SELECT id FROM {table} WHERE id = ANY(%(ids)s::uuid[]) AND lease_token IS NULL
                      AND {UNPAUSED[table]} AND {_HAS_PLACE.get(table, "true")})"""
    for table in SUBJECT
}
_HELD: Final = " UNION ALL ".join(
    f"SELECT id, lease_token FROM {table} WHERE lease_token IS NOT NULL" for table in SUBJECT
)

WORK: Final[Mapping[Check, str]] = build_checks(
    *(
        (2, table, "far", "t.state || ' and not due before ' || t.run_at", "",
         f"{live} AND t.run_at > moment() + interval '31 d'")
        for table, live in _LIVE.items()
    ),
    *(
        (2, table, "overdue", "t.state || ' and overdue since ' || t.run_at", "",
         f"{live} AND t.run_at < moment() - make_interval(secs => %(overdue_seconds)s) AND {_CLAIMABLE[table]}")
        for table, live in _LIVE.items()
    ),
    *(
        (2, table, "held", "'lease expired at ' || t.leased_until || ' and was not released'", "",
         "t.leased_until < moment() - make_interval(secs => 10 * %(lease_seconds)s)")
        for table in SUBJECT
    ),
    (2, "deliveries", "unmatched", "'unmatched although unmatched_until has passed'", "",
     "t.state = 'unmatched' AND t.unmatched_until < moment() - interval '1 h'"),
    (2, "outputs", "orphaned", "'waiting, but its job is ' || coalesce(j.state, 'missing')",
     "LEFT JOIN jobs j ON j.id = t.job_id",
     """t.state = 'waiting'
   AND ((t.deferred_at IS NULL OR t.category IS NULL) AND j.state IS DISTINCT FROM 'keeping'
        OR j.state IN ('succeeded', 'cancelled'))"""),
    *(
        (6, table, "lease", "'lease ends as late as ' || t.leased_until", "",
         "t.leased_until > moment() + make_interval(secs => 3 * %(lease_seconds)s + 60)")
        for table in SUBJECT
    ),
    *(
        (6, table, "token", "'another row has the same lease token'", "",
         f"""t.lease_token IS NOT NULL
   AND EXISTS (SELECT FROM ({_HELD}) held WHERE held.lease_token = t.lease_token AND held.id <> t.id)""")
        for table in SUBJECT
    ),
)  # fmt: skip
