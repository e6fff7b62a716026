"""
Turns of owners: which planned prediction is submitted next, and whether its provider has capacity for it.

A prediction takes its place when it is claimed, so that the claim alone decides. A wake of step submit or generate
names a provider by one of its rows, and not the row that is submitted: owners take turns, in the order of their names
from the one that was served last, each with the oldest of its predictions that may be submitted.
"""

import uuid
from collections.abc import Collection, Mapping
from typing import Any, Final
from uuid import UUID

from db import breakers, leases
from db.connection import Connection, Database, Row, fetch_all
from db.statements import statement
from moorage.model import Lease, Step, Wake
from moorage.settings import Settings

# Those of applications do not count: waiting would not reduce them. As in the index `predictions_in_flight`.
IN_FLIGHT: Final = """entry IS NOT NULL
   AND (state IN ('submitting', 'running') OR state = 'planned' AND lease_token IS NOT NULL)"""
# True for a planned prediction that waits for no place (nothing is in flight at its provider or of its owner) and for
# no breaker that somebody probes.
WAITS_FOR_NOTHING: Final = f"""provider <> ALL (ARRAY(SELECT provider FROM predictions WHERE {IN_FLIGHT}))
   AND owner <> ALL (ARRAY(SELECT owner FROM predictions WHERE {IN_FLIGHT}))
   AND {breakers.PROVIDER_ALLOWS}"""
_WAITING: Final = "p.state = 'planned' AND p.lease_token IS NULL AND p.provider = c.provider"

# Free places by provider, and by text that models contain; an empty one is in the model of every prediction.
_CAPACITY: Final = f"""capacity AS MATERIALIZED (
    SELECT l.provider, l.model_text, l.places - (SELECT count(*) FROM predictions
            WHERE provider = l.provider AND {IN_FLIGHT}
              AND strpos(lower(coalesce(model, '')), l.model_text) > 0) AS free
      FROM unnest(%(providers)s::text[], %(model_texts)s::text[], %(places)s::integer[])
           AS l (provider, model_text, places)
)"""
LAST_SERVED: Final = """(SELECT s.owner FROM cursors u JOIN predictions s ON s.id = u.place::uuid
                           WHERE u.sweep = 'submit ' || c.provider)"""


def _build_next(condition: str, limit: str) -> str:
    """Return the query for the predictions whose turn it is: the owners after the last served one, then the others."""
    return f"""
    SELECT c.provider, n.id FROM capacity c CROSS JOIN LATERAL (
        WITH RECURSIVE turns (owner, last, pass) AS (
            SELECT o.owner, o.owner, 0 FROM (SELECT coalesce({LAST_SERVED}, '') AS owner) o
            UNION ALL
            SELECT n.owner, t.last, n.pass FROM turns t CROSS JOIN LATERAL (
                (SELECT p.owner, greatest(t.pass, 1) AS pass FROM predictions p
                  WHERE {_WAITING} AND p.owner > t.owner ORDER BY p.owner LIMIT 1)
                UNION ALL SELECT '', 2 WHERE t.pass < 2 LIMIT 1) n
             WHERE n.pass < 2 OR n.owner <= t.last
        )
        SELECT r.id FROM turns t CROSS JOIN LATERAL (
            SELECT p.id FROM predictions p
             WHERE {_WAITING} AND p.owner = t.owner AND p.run_at <= moment() {condition} AND {breakers.SUBMIT_ALLOWS}
               AND NOT EXISTS (SELECT FROM capacity f WHERE f.provider = c.provider AND f.free <= 0
                                  AND strpos(lower(coalesce(p.model, '')), f.model_text) > 0)
             ORDER BY p.id LIMIT {limit} FOR UPDATE OF p SKIP LOCKED) r
         WHERE t.pass > 0
           AND t.owner <> ALL (ARRAY(SELECT owner FROM predictions WHERE {IN_FLIGHT} GROUP BY owner
                                     HAVING count(*) >= %(owner_places)s))
         LIMIT {limit}) n
     WHERE c.model_text = '' AND c.free > 0 AND c.provider <> ALL (ARRAY(SELECT target FROM pauses))"""


# One look at the index predictions_waiting for each.
@statement("""
WITH RECURSIVE c (provider) AS (
    (SELECT provider FROM predictions WHERE state = 'planned' AND lease_token IS NULL ORDER BY 1 LIMIT 1)
    UNION ALL
    SELECT (SELECT provider FROM predictions WHERE state = 'planned' AND lease_token IS NULL AND provider > c.provider
             ORDER BY 1 LIMIT 1) FROM c WHERE c.provider IS NOT NULL
) SELECT provider FROM c WHERE provider IS NOT NULL
""")
def list_providers(conn: Connection) -> list[str]:
    """Return the providers for which predictions wait, also those that are no longer configured."""


def build_limits(settings: Settings, providers: Collection[str]) -> Row:
    """Return the limits of providers, and of their models, as arguments. One that is not configured has one place."""
    in_flight = dict.fromkeys(providers, 1) | dict(settings.in_flight)
    names = [(*key.partition(":"), places) for key, places in in_flight.items() if key.partition(":")[0] in providers]
    lists = {"providers": [n[0] for n in names], "model_texts": [n[2] for n in names]}
    return {**lists, "places": [n[3] for n in names], "owner_places": settings.owner_limits.get("in_flight")}


FIND_NAMED: Final = """
SELECT provider, state = 'submitting' AND lease_token IS NULL AS is_lookup,
       lease_token IS NULL AND crashes >= %(max_crashes)s AS is_poison
  FROM predictions WHERE id = %(id)s
"""
# Claims count with a snapshot of their own. One lock for all providers where an owner's places are limited over all.
LOCK: Final = """
SELECT pg_advisory_xact_lock(hashtextextended(
       'moorage.submit ' || CASE WHEN %(owner_places)s::integer IS NULL THEN %(provider)s ELSE '' END, 0))
"""
CLAIM: Final = f"""
WITH {_CAPACITY}, chosen AS MATERIALIZED ({_build_next("AND p.crashes < %(max_crashes)s", "1")}
), served AS (
    INSERT INTO cursors (sweep, place, after_key) SELECT 'submit ' || provider, id::text, '' FROM chosen
    ON CONFLICT (sweep) DO UPDATE SET place = excluded.place, moved_at = moment()
), probe AS ({breakers.DELAY_PROBE} AND target = 'api ' || (SELECT provider FROM chosen)
), unmarked AS (  -- its wake has done its work: it may need another one
    UPDATE predictions SET woken_at = NULL
     WHERE id = (SELECT id FROM predictions
                  WHERE id = %(id)s AND state = 'planned' AND lease_token IS NULL AND woken_at IS NOT NULL
                    AND id NOT IN (SELECT id FROM chosen) FOR UPDATE SKIP LOCKED)
)
UPDATE predictions p SET {leases.SET_LEASE} FROM chosen WHERE p.id = chosen.id
RETURNING p.id AS row_id, moment() AS claimed_at, p.attempt, p.crashes
"""


def claim(
    database: Database,
    row_id: UUID,
    settings: Settings,
    *,
    passed_on: Collection[str],
    leased_by: str,
    lease_seconds: float,
    max_crashes: int,
) -> tuple[Lease | None, bool]:
    """
    Claim the prediction whose turn it is at the provider of the named one, if there is capacity for it.

    Claims the named row itself if the outcome of its submission is unknown, or if its provider is one of `passed_on`,
    whose predictions another step submits. Returns also whether the named row is poison.
    """
    named = database.fetch_all(FIND_NAMED, {"id": row_id, "max_crashes": max_crashes})
    if not named:
        return None, False
    provider, is_lookup, is_poison = named[0].values()
    who: dict[str, Any] = {"leased_by": leased_by, "lease_seconds": lease_seconds, "max_crashes": max_crashes}
    if is_lookup or provider in passed_on:
        return leases.claim(database, "submit", row_id, **who), is_poison
    token = uuid.uuid4()
    args = {**build_limits(settings, [provider]), **who, "provider": provider, "id": row_id, "token": token}

    def claim_locked(conn: Connection) -> list[Row]:
        conn.queue(LOCK, args)
        return conn.fetch_all(CLAIM, args)

    rows = database.run(claim_locked)
    return (Lease("predictions", token=token, leased_by=leased_by, **rows[0]) if rows else None), is_poison


# Soon again: a wake that its queue had no room for is lost, and a repeated one costs an empty claim.
WAKE: Final = f"""
WITH {_CAPACITY}, next AS MATERIALIZED ({_build_next("", "least(c.free, %(limit)s)")}
)
UPDATE predictions p SET woken_at = moment() FROM (
    SELECT id FROM next JOIN predictions w USING (id, provider)
     WHERE %(queue_is_empty)s OR woken_at IS NULL OR woken_at < moment() - interval '2 s'
     ORDER BY row_number() OVER (PARTITION BY provider), random() LIMIT %(limit)s) AS due
 WHERE p.id = due.id RETURNING p.id, p.provider
"""


def wake(
    conn: Connection, settings: Settings, steps: Mapping[str, Step], *, limit: int = 1000, queue_is_empty: bool = False
) -> list[Wake]:
    """
    Mark as woken what each provider has capacity for, at most `limit` predictions of all; return their wakes.

    None is returned twice within 2 s, unless the queue is empty. `steps`: the one that submits, by provider.
    """
    args = {**build_limits(settings, steps), "limit": limit, "queue_is_empty": queue_is_empty}
    return [Wake(steps[row["provider"]], row["id"]) for row in fetch_all(conn, WAKE, args)]
