"""Checks of rules 1 to 4, 6, 8 and 9 over the current rows."""

from collections.abc import Mapping
from typing import Final

from db.audit.check import SUBJECTS, Check, build_checks
from db.breakers import HOST_ALLOWS, POLL_ALLOWS
from db.leases import LIVE, SUBJECT, UNPAUSED
from db.progress import STATUS
from db.projects import build_key_columns
from db.submission_turns import WAITS_FOR_NOTHING

_ROWS: Final = build_checks(
    (1, "deliveries", "body", "'body missing before it was applied'", "",
     "t.body IS NULL AND t.state IN ('new', 'unmatched')"),
    (1, "deliveries", "digest", "'webhook_id is the digest of other bytes'", "",
     "t.webhook_id LIKE 'sha256:%%' AND t.webhook_id <> 'sha256:' || t.body_sha256"),
    (1, "deliveries", "bytes", "'body does not match body_sha256'", "",
     "t.body IS NOT NULL AND encode(sha256(t.body), 'hex') <> t.body_sha256"),
    (1, "deliveries", "applied", "'applied, but not to a prediction with its external_id'",
     "LEFT JOIN predictions p ON p.id = t.prediction_id",
     "t.state = 'applied' AND (p.provider, p.external_id) IS DISTINCT FROM (t.provider, t.external_id)"),
    (3, "jobs", "unpublished", "t.state || ' without a render'", "",
     "t.state IN ('succeeded', 'partial') AND NOT EXISTS (SELECT FROM renders r WHERE r.id = t.id)"),
    (3, "jobs", "incomplete", "'succeeded, but ' || count(*) || ' of its files are not kept'",
     "JOIN outputs o ON o.job_id = t.id",
     """t.state = 'succeeded' AND o.state <> 'kept' AND o.prediction_id = t.chosen_id
   AND o.category IS DISTINCT FROM 'FOREIGN_HOST'
   AND NOT EXISTS (SELECT FROM renders r WHERE r.id = t.id AND r.deleted_at IS NOT NULL) GROUP BY t.id"""),
    (3, "jobs", "unsettled", "'not settled, although none of its files is waiting'", "",
     """t.state = 'keeping'
   AND NOT EXISTS (SELECT FROM outputs o WHERE o.job_id = t.id AND o.state = 'waiting' AND o.deferred_at IS NULL)"""),
    (3, "jobs", "filelost", "'gaps in idx of its outputs: ' || count(*) || ' rows, largest idx ' || max(o.idx)",
     "JOIN outputs o ON o.job_id = t.id", "true GROUP BY t.id HAVING count(*) <> max(o.idx) + 1"),
    (3, "jobs", "chosen", "'chosen prediction is ' || coalesce(p.state || ', or of another job', 'missing')",
     "LEFT JOIN predictions p ON p.id = t.chosen_id",
     """(t.chosen_id IS NOT NULL AND (p.state IS DISTINCT FROM 'succeeded' OR p.job_id <> t.id)
        OR t.chosen_id IS NULL AND EXISTS (SELECT FROM outputs o WHERE o.job_id = t.id))"""),
    (3, "jobs", "standin", """'has a placeholder, ' || CASE WHEN t.placeholder
       THEN 'but state succeeded' ELSE 'but did not request one' END""", "",
     """EXISTS (SELECT FROM outputs o WHERE o.job_id = t.id AND o.is_placeholder)
   AND (NOT t.placeholder OR (t.state = 'succeeded' AND EXISTS
        (SELECT FROM outputs o WHERE o.prediction_id = t.chosen_id AND o.is_placeholder)))"""),
    (7, "jobs", "untried", "'failed, and files of prediction ' || p.id || ' were not attempted'",
     "JOIN predictions p ON p.job_id = t.id",
     """t.state = 'failed' AND p.state = 'succeeded' AND NOT EXISTS (SELECT FROM renders r WHERE r.id = t.id)
   AND NOT EXISTS (SELECT FROM outputs o WHERE o.prediction_id = p.id)"""),
    (2, "jobs", "unawaited", "'open without a planned, submitting or running prediction'", "",
     """t.state = 'open' AND NOT EXISTS (SELECT FROM predictions p
                    WHERE p.job_id = t.id AND p.state IN ('planned', 'submitting', 'running'))"""),
    (2, "predictions", "unwanted", "'planned, but its job is ' || j.state", "JOIN jobs j ON j.id = t.job_id",
     "t.state = 'planned' AND j.state <> 'open'"),
    (3, "predictions", "job", "'its job does not exist'", "",
     "NOT EXISTS (SELECT FROM jobs j WHERE j.id = t.job_id)"),
    (3, "jobs", "unasked", "'no prediction'", "", "NOT EXISTS (SELECT FROM predictions p WHERE p.job_id = t.id)"),
    (3, "renders", "unearned", "'published, but its job is ' || coalesce(j.state, 'missing')",
     "LEFT JOIN jobs j ON j.id = t.id",
     """t.deleted_at IS NULL
   AND coalesce(j.state NOT IN ('succeeded', 'partial') AND j.reopened = 0, true)"""),
    (3, "renders", "empty", "'no variants'", "",
     "NOT EXISTS (SELECT FROM render_variants v WHERE v.render_id = t.id)"),
    (3, "renders", "cover", "'cover_idx is not one of its images and videos'", "",
     """EXISTS (SELECT FROM render_variants v JOIN outputs o ON o.id = v.output_id
                WHERE v.render_id = t.id AND (t.cover_idx IS NOT NULL OR NOT o.is_placeholder AND o.media <> 'file'))
   AND NOT EXISTS (SELECT FROM render_variants v JOIN outputs o ON o.id = v.output_id
                    WHERE v.render_id = t.id AND v.idx = t.cover_idx AND o.media <> 'file')"""),
    (3, "renders", "uncovered", "'cover is the placeholder, although it has files'",
     "JOIN render_variants v ON v.render_id = t.id AND v.idx = t.cover_idx JOIN outputs o ON o.id = v.output_id",
     """t.deleted_at IS NULL AND o.is_placeholder
   AND EXISTS (SELECT FROM render_variants w JOIN outputs q ON q.id = w.output_id
                WHERE w.render_id = t.id AND NOT q.is_placeholder)"""),
    (3, "renders", "owner", "'owner differs from its job''s owner'", "JOIN jobs j ON j.id = t.id",
     "t.owner <> j.owner"),
    (3, "renders", "nofile", "'output of variant ' || v.idx || ' does not exist'",
     "JOIN render_variants v ON v.render_id = t.id", "NOT EXISTS (SELECT FROM outputs o WHERE o.id = v.output_id)"),
    (3, "outputs", "variant", """'is a variant, but ' || CASE WHEN r.id IS NULL THEN 'without a render'
       WHEN t.state <> 'kept' THEN 'state is ' || t.state ELSE 'of another render or idx' END""",
     "JOIN render_variants v ON v.output_id = t.id LEFT JOIN renders r ON r.id = v.render_id",
     """(r.id IS NULL OR (t.state <> 'kept' AND r.deleted_at IS NULL)
        OR t.job_id <> v.render_id OR t.idx <> v.idx)"""),
    (3, "outputs", "missing", "'kept and its job is ' || j.state || ', but not a variant'",
     "JOIN jobs j ON j.id = t.job_id",
     """t.state = 'kept' AND j.state IN ('succeeded', 'partial', 'failed')
   AND NOT EXISTS (SELECT FROM render_variants v WHERE v.output_id = t.id)"""),
    (3, "outputs", "foreign", "'its prediction is ' || coalesce(p.state || ', or of another job', 'missing')",
     "LEFT JOIN predictions p ON p.id = t.prediction_id",
     "(p.id IS NULL OR p.job_id <> t.job_id OR p.state <> 'succeeded')"),
    (4, "outputs", "key", "'key ' || t.key || ' does not match its job, idx and sha256'", "",
     """EXISTS (SELECT FROM unnest(ARRAY[t.key, t.thumb_key]) k
          WHERE NOT starts_with(k, 'renders/' || t.job_id || '/' || t.idx || '-' || left(t.sha256, 16) || '-'))"""),
    (4, "outputs", "thumbnail", "'kept without a thumbnail'", "",
     """t.state = 'kept' AND t.thumb_key IS NULL AND t.media <> 'file'
   AND (t.media <> 'video' OR t.thumb_missing IS NULL)"""),
    (4, "outputs", "facts", "'kept with incomplete file properties'", "",
     """t.state = 'kept' AND (num_nulls(t.media, t.format, t.content_type, t.bytes, t.sha256, t.key) > 0
                         OR num_nulls(t.thumb_key, t.thumb_bytes, t.thumb_sha256) NOT IN (0, 3))"""),
    (4, "outputs", "quarantine", """'key ' || t.quarantine_key || ' in quarantine does not match its job and idx,'
       || ' or its properties are incomplete'""", "",
     """t.quarantine_key IS NOT NULL
   AND (num_nulls(t.quarantine_bytes, t.quarantine_sha256, t.quarantined_at) > 0 OR NOT starts_with(t.quarantine_key,
        'quarantine/renders/' || t.job_id || '/' || t.idx || '-' || left(t.quarantine_sha256, 16) || '-'))"""),
    (8, "dead_letters", "alive", "'open, but its ' || t.subject || ' is ' || coalesce(r.state, 'missing')",
     """LEFT JOIN (SELECT 'delivery' AS subject, id, state FROM deliveries
             UNION ALL SELECT 'prediction', id, state FROM predictions
             UNION ALL SELECT 'output', id, state FROM outputs
             UNION ALL SELECT 'notification', id, state FROM notifications) r
         ON (r.subject, r.id) = (t.subject, t.subject_id)""",
     """t.state = 'open' AND t.subject <> 'message'
   AND coalesce(r.state NOT IN ('dead', 'lost', 'discarded'), true)"""),
    *(
        (8, table, "silent", f"'{state} without a dead letter'", "", f"""t.state = '{state}' AND {unless}
   AND NOT EXISTS (SELECT FROM dead_letters d
                    WHERE d.subject = '{SUBJECTS[table]}' AND d.subject_id = t.id AND d.state <> 'replayed')""")
        for table, state, unless in (
            ("deliveries", "dead", "true"), ("predictions", "lost", "true"), ("notifications", "dead", "true"),
            ("outputs", "dead", "t.category <> 'CANCELLED'"),  # cancelled by request
        )
    ),
    (8, "dead_letters", "doubled", "'another open dead letter exists for its ' || t.subject",
     "JOIN dead_letters o ON (o.subject, o.subject_id) = (t.subject, t.subject_id) AND o.id <> t.id",
     "t.state = 'open' AND o.state = 'open'"),
    (9, "renders", "doubled", "'variant ' || p.idx || ' has ' || count(*) || ' placements'",
     "JOIN placements p ON p.render_id = t.id", "true GROUP BY t.id, p.idx HAVING count(*) > 1"),
    (9, "renders", "unplaced", "'variant ' || v.idx || ' has no placement in project ' || j.project_id",
     "JOIN render_variants v ON v.render_id = t.id JOIN jobs j ON j.id = t.id",
     """j.project_id IS NOT NULL
   AND NOT EXISTS (SELECT FROM placements p WHERE (p.render_id, p.idx, p.owner, p.project_id)
                                                = (v.render_id, v.idx, j.owner, j.project_id))"""),
    (9, "jobs", "project", "'project ' || t.project_id || ' does not exist'", "",
     """t.project_id IS NOT NULL
   AND NOT EXISTS (SELECT FROM projects p WHERE (p.owner, p.id) = (t.owner, t.project_id))"""),
)  # fmt: skip

_THESE_PROJECTS: Final = f"IN (SELECT {build_key_columns('key')} FROM unnest(%(ids)s::text[]) AS key)"

_PROJECTS: Final = {
    Check(9, "projects", "unowned"): f"""
SELECT 'project' AS subject, p.owner || '/' || p.project_id AS id,
       'placement of unpublished variant ' || p.idx || ' of render ' || p.render_id AS what
  FROM placements p WHERE (p.owner, p.project_id) {_THESE_PROJECTS}
   AND NOT EXISTS (SELECT FROM render_variants v WHERE (v.render_id, v.idx) = (p.render_id, p.idx))""",
    Check(9, "projects", "status"): f"""
SELECT 'project' AS subject, p.owner || '/' || p.id AS id,
       'status is ' || p.status || ', but by its jobs it is ' || {STATUS} AS what
  FROM projects p WHERE (p.owner, p.id) {_THESE_PROJECTS} AND p.status IS DISTINCT FROM {STATUS}""",
}

# Rules 2 and 6: every live row is due at some time, and every lease ends.
_LIVE: Final = {table: f"t.state IN ({states})" for table, states in {**LIVE, "jobs": "'open', 'keeping'"}.items()}
# Paused rows wait for an operator, planned ones perhaps for a place, polls for a provider, files for a host; leased
# ones have own checks.
_HAS_PLACE: Final = {
    "predictions": f"(CASE WHEN state = 'planned' THEN {WAITS_FOR_NOTHING} ELSE {POLL_ALLOWS} END)",
    "outputs": HOST_ALLOWS,
}
_CLAIMABLE: Final = {"jobs": "true"} | {
    table: f"""t.id IN (SELECT id FROM {table} WHERE id = ANY(%(ids)s::uuid[]) AND lease_token IS NULL
                      AND {UNPAUSED[table]} AND {_HAS_PLACE.get(table, "true")})"""
    for table in SUBJECT
}
_DEADLINES: Final = {"jobs": ", t.deadline_at", "predictions": ", t.deadline_at, t.output_until"}
_HELD: Final = " UNION ALL ".join(
    f"SELECT id, lease_token FROM {table} WHERE lease_token IS NOT NULL" for table in SUBJECT
)

_WORK: Final = build_checks(
    *(
        (2, table, "time", "t.state || ' without run_at'", "", f"{live} AND t.run_at IS NULL")
        for table, live in _LIVE.items()
    ),
    *(
        (2, table, "far", "t.state || ' and not due before ' || t.run_at", "",
         f"{live} AND t.run_at > greatest(moment(){_DEADLINES.get(table, '')}) + interval '31 d'")
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
        (6, table, "lease", """CASE WHEN num_nulls(t.leased_by, t.leased_until) > 0 THEN 'lease without holder or end'
       ELSE t.state || ' and leased until ' || t.leased_until END""", "",
         f"""t.lease_token IS NOT NULL AND (NOT {_LIVE[table]} OR num_nulls(t.leased_by, t.leased_until) > 0
        OR t.leased_until > moment() + make_interval(secs => 3 * %(lease_seconds)s + 60))""")
        for table in SUBJECT
    ),
    *(
        (6, table, "counts", "'crashes = ' || t.crashes || ', attempt = ' || t.attempt", "",
         "(t.crashes < 0 OR t.attempt < 0)")
        for table in SUBJECT
    ),
    *(
        (6, table, "token", "'another row has the same lease token'", "",
         f"""t.lease_token IS NOT NULL
   AND EXISTS (SELECT FROM ({_HELD}) held WHERE held.lease_token = t.lease_token AND held.id <> t.id)""")
        for table in SUBJECT
    ),
)  # fmt: skip

ROWS: Final[Mapping[Check, str]] = {**_ROWS, **_PROJECTS, **_WORK}
