"""Checks of rules 1, 2 (fallback chains), 3, 4, 8 and 9 over the current rows."""

from collections.abc import Mapping
from typing import Final

from db.audit.check import Check
from db.progress import STATUS
from db.projects import build_key_columns

_THESE: Final = "= ANY(%(ids)s::uuid[])"

_DELIVERIES: Final = {
    Check(1, "deliveries", "body"): f"""
SELECT 'delivery' AS subject, id::text AS id, 'body missing before it was applied' AS what
  FROM deliveries WHERE id {_THESE} AND body IS NULL AND state IN ('new', 'unmatched')""",
    Check(1, "deliveries", "digest"): f"""
SELECT 'delivery' AS subject, id::text AS id, 'webhook_id is the digest of other bytes' AS what
  FROM deliveries WHERE id {_THESE} AND webhook_id LIKE 'sha256:%%' AND webhook_id <> 'sha256:' || body_sha256""",
    Check(1, "deliveries", "bytes"): f"""
SELECT 'delivery' AS subject, id::text AS id, 'body does not match body_sha256' AS what
  FROM deliveries WHERE id {_THESE} AND body IS NOT NULL AND encode(sha256(body), 'hex') <> body_sha256""",
    Check(1, "deliveries", "applied"): f"""
SELECT 'delivery' AS subject, d.id::text AS id, 'applied, but not to a prediction with its external_id' AS what
  FROM deliveries d LEFT JOIN predictions p ON p.id = d.prediction_id
 WHERE d.id {_THESE} AND d.state = 'applied'
   AND (p.provider, p.external_id) IS DISTINCT FROM (d.provider, d.external_id)""",
}

_JOBS: Final = {
    Check(3, "jobs", "unpublished"): f"""
SELECT 'job' AS subject, j.id::text AS id, j.state || ' without a render' AS what
  FROM jobs j WHERE j.id {_THESE} AND j.state IN ('succeeded', 'partial')
   AND NOT EXISTS (SELECT FROM renders r WHERE r.id = j.id)""",
    Check(3, "jobs", "incomplete"): f"""
SELECT 'job' AS subject, j.id::text AS id, 'succeeded, but ' || count(*) || ' of its files are not kept' AS what
  FROM jobs j JOIN outputs o ON o.job_id = j.id
 WHERE j.id {_THESE} AND j.state = 'succeeded' AND o.state <> 'kept' AND o.prediction_id = j.chosen_id
   AND o.category IS DISTINCT FROM 'FOREIGN_HOST'
   AND NOT EXISTS (SELECT FROM renders r WHERE r.id = j.id AND r.deleted_at IS NOT NULL)
 GROUP BY j.id""",
    Check(3, "jobs", "unsettled"): f"""
SELECT 'job' AS subject, j.id::text AS id, 'not settled, although none of its files is waiting' AS what
  FROM jobs j WHERE j.id {_THESE} AND j.state = 'keeping'
   AND NOT EXISTS (SELECT FROM outputs o WHERE o.job_id = j.id AND o.state = 'waiting' AND o.deferred_at IS NULL)""",
    Check(3, "jobs", "filelost"): f"""
SELECT 'job' AS subject, j.id::text AS id, 'gaps in idx of its outputs: ' || count(*) || ' rows, largest idx '
       || max(o.idx) AS what
  FROM jobs j JOIN outputs o ON o.job_id = j.id
 WHERE j.id {_THESE} GROUP BY j.id HAVING count(*) <> max(o.idx) + 1""",
    Check(3, "jobs", "chosen"): f"""
SELECT 'job' AS subject, j.id::text AS id, 'chosen prediction is ' ||
       coalesce(p.state || ', or of another job', 'missing') AS what
  FROM jobs j LEFT JOIN predictions p ON p.id = j.chosen_id WHERE j.id {_THESE}
   AND (j.chosen_id IS NOT NULL AND (p.state IS DISTINCT FROM 'succeeded' OR p.job_id <> j.id)
        OR j.chosen_id IS NULL AND EXISTS (SELECT FROM outputs o WHERE o.job_id = j.id))""",
    Check(3, "jobs", "standin"): f"""
SELECT 'job' AS subject, j.id::text AS id, 'has a placeholder, ' || CASE WHEN j.placeholder
       THEN 'but state succeeded' ELSE 'but did not request one' END AS what
  FROM jobs j WHERE j.id {_THESE} AND EXISTS (SELECT FROM outputs o WHERE o.job_id = j.id AND o.is_placeholder)
   AND (NOT j.placeholder OR (j.state = 'succeeded' AND EXISTS
        (SELECT FROM outputs o WHERE o.prediction_id = j.chosen_id AND o.is_placeholder)))""",
    Check(7, "jobs", "untried"): f"""
SELECT 'job' AS subject, j.id::text AS id, 'failed, and files of prediction ' || p.id || ' were not attempted' AS what
  FROM jobs j JOIN predictions p ON p.job_id = j.id
 WHERE j.id {_THESE} AND j.state = 'failed' AND p.state = 'succeeded'
   AND NOT EXISTS (SELECT FROM outputs o WHERE o.prediction_id = p.id)
   AND NOT EXISTS (SELECT FROM renders r WHERE r.id = j.id)""",
    Check(2, "jobs", "unawaited"): f"""
SELECT 'job' AS subject, j.id::text AS id, 'open without a planned, submitting or running prediction' AS what
  FROM jobs j WHERE j.id {_THESE} AND j.state = 'open'
   AND NOT EXISTS (SELECT FROM predictions p
                    WHERE p.job_id = j.id AND p.state IN ('planned', 'submitting', 'running'))""",
    Check(2, "predictions", "unwanted"): f"""
SELECT 'prediction' AS subject, p.id::text AS id, 'planned, but its job is ' || j.state AS what
  FROM predictions p JOIN jobs j ON j.id = p.job_id
 WHERE p.id {_THESE} AND p.state = 'planned' AND j.state <> 'open'""",
    Check(3, "predictions", "job"): f"""
SELECT 'prediction' AS subject, p.id::text AS id, 'its job does not exist' AS what
  FROM predictions p WHERE p.id {_THESE} AND NOT EXISTS (SELECT FROM jobs j WHERE j.id = p.job_id)""",
    Check(3, "jobs", "unasked"): f"""
SELECT 'job' AS subject, j.id::text AS id, 'no prediction' AS what
  FROM jobs j WHERE j.id {_THESE} AND NOT EXISTS (SELECT FROM predictions p WHERE p.job_id = j.id)""",
}

_RENDERS: Final = {
    Check(3, "renders", "unearned"): f"""
SELECT 'render' AS subject, r.id::text AS id, 'published, but its job is ' || coalesce(j.state, 'missing') AS what
  FROM renders r LEFT JOIN jobs j ON j.id = r.id WHERE r.id {_THESE} AND r.deleted_at IS NULL
   AND coalesce(j.state NOT IN ('succeeded', 'partial') AND j.reopened = 0, true)""",
    Check(3, "renders", "empty"): f"""
SELECT 'render' AS subject, r.id::text AS id, 'no variants' AS what
  FROM renders r WHERE r.id {_THESE} AND NOT EXISTS (SELECT FROM render_variants v WHERE v.render_id = r.id)""",
    Check(3, "renders", "cover"): f"""
SELECT 'render' AS subject, r.id::text AS id, 'cover_idx is not one of its images and videos' AS what
  FROM renders r WHERE r.id {_THESE}
   AND EXISTS (SELECT FROM render_variants v JOIN outputs o ON o.id = v.output_id
                WHERE v.render_id = r.id AND (r.cover_idx IS NOT NULL OR NOT o.is_placeholder AND o.media <> 'file'))
   AND NOT EXISTS (SELECT FROM render_variants v JOIN outputs o ON o.id = v.output_id
                    WHERE v.render_id = r.id AND v.idx = r.cover_idx AND o.media <> 'file')""",
    Check(3, "renders", "uncovered"): f"""
SELECT 'render' AS subject, r.id::text AS id, 'cover is the placeholder, although it has files' AS what
  FROM renders r
  JOIN render_variants v ON v.render_id = r.id AND v.idx = r.cover_idx
  JOIN outputs o ON o.id = v.output_id WHERE r.id {_THESE} AND r.deleted_at IS NULL AND o.is_placeholder
   AND EXISTS (SELECT FROM render_variants w JOIN outputs q ON q.id = w.output_id
                WHERE w.render_id = r.id AND NOT q.is_placeholder)""",
    Check(3, "renders", "owner"): f"""
SELECT 'render' AS subject, r.id::text AS id, 'owner differs from its job''s owner' AS what
  FROM renders r JOIN jobs j ON j.id = r.id WHERE r.id {_THESE} AND r.owner <> j.owner""",
    Check(3, "renders", "nofile"): f"""
SELECT 'render' AS subject, v.render_id::text AS id, 'output of variant ' || v.idx || ' does not exist' AS what
  FROM render_variants v WHERE v.render_id {_THESE} AND NOT EXISTS (SELECT FROM outputs o WHERE o.id = v.output_id)""",
    Check(3, "outputs", "variant"): f"""
SELECT 'output' AS subject, o.id::text AS id, 'is a variant, but ' || CASE WHEN r.id IS NULL THEN 'without a render'
       WHEN o.state <> 'kept' THEN 'state is ' || o.state ELSE 'of another render or idx' END AS what
  FROM outputs o JOIN render_variants v ON v.output_id = o.id LEFT JOIN renders r ON r.id = v.render_id
 WHERE o.id {_THESE}
   AND (r.id IS NULL OR (o.state <> 'kept' AND r.deleted_at IS NULL) OR o.job_id <> v.render_id OR o.idx <> v.idx)""",
    Check(3, "outputs", "missing"): f"""
SELECT 'output' AS subject, o.id::text AS id, 'kept and its job is ' || j.state || ', but not a variant' AS what
  FROM outputs o JOIN jobs j ON j.id = o.job_id
 WHERE o.id {_THESE} AND o.state = 'kept' AND j.state IN ('succeeded', 'partial', 'failed')
   AND NOT EXISTS (SELECT FROM render_variants v WHERE v.output_id = o.id)""",
    Check(3, "outputs", "foreign"): f"""
SELECT 'output' AS subject, o.id::text AS id, 'its prediction is ' ||
       coalesce(p.state || ', or of another job', 'missing') AS what
  FROM outputs o LEFT JOIN predictions p ON p.id = o.prediction_id
 WHERE o.id {_THESE} AND (p.id IS NULL OR p.job_id <> o.job_id OR p.state <> 'succeeded')""",
}

_FILES: Final = {
    Check(4, "outputs", "thumbnail"): f"""
SELECT 'output' AS subject, id::text AS id, 'kept without a thumbnail' AS what
  FROM outputs
 WHERE id {_THESE} AND state = 'kept' AND thumb_key IS NULL AND media <> 'file'
   AND (media <> 'video' OR thumb_missing IS NULL)""",
    Check(4, "outputs", "facts"): f"""
SELECT 'output' AS subject, id::text AS id, 'kept with incomplete file properties' AS what
  FROM outputs WHERE id {_THESE} AND state = 'kept' AND (num_nulls(media, format, content_type, bytes, sha256, key) > 0
       OR num_nulls(thumb_key, thumb_bytes, thumb_sha256) NOT IN (0, 3))""",
    Check(4, "outputs", "key"): f"""
SELECT 'output' AS subject, id::text AS id, 'key ' || key || ' does not match its job, idx and sha256' AS what
  FROM outputs WHERE id {_THESE}
   AND (NOT starts_with(key, 'renders/' || job_id || '/' || idx || '-' || left(sha256, 16) || '-')
        OR NOT starts_with(thumb_key, 'renders/' || job_id || '/' || idx || '-' || left(sha256, 16) || '-'))""",
    Check(4, "outputs", "quarantine"): f"""
SELECT 'output' AS subject, id::text AS id, 'key ' || quarantine_key || ' in quarantine does not match its job and idx,'
       || ' or its properties are incomplete' AS what
  FROM outputs WHERE id {_THESE} AND quarantine_key IS NOT NULL
   AND (num_nulls(quarantine_bytes, quarantine_sha256, quarantined_at) > 0 OR NOT starts_with(quarantine_key,
        'quarantine/renders/' || job_id || '/' || idx || '-' || left(quarantine_sha256, 16) || '-'))""",
}

_ROW_OF: Final = """
  LEFT JOIN (SELECT 'delivery' AS subject, id, state FROM deliveries
             UNION ALL SELECT 'prediction', id, state FROM predictions
             UNION ALL SELECT 'output', id, state FROM outputs
             UNION ALL SELECT 'notification', id, state FROM notifications) r
         ON (r.subject, r.id) = (d.subject, d.subject_id)
"""

_DEAD_LETTERS: Final = {
    Check(8, table, "silent"): f"""
SELECT '{subject}' AS subject, t.id::text AS id, '{state} without a dead letter' AS what
  FROM {table} t WHERE t.id {_THESE} AND t.state = '{state}'
   AND NOT EXISTS (SELECT FROM dead_letters d
                    WHERE d.subject = '{subject}' AND d.subject_id = t.id AND d.state <> 'replayed') {excused}"""
    for table, subject, state, excused in (
        ("deliveries", "delivery", "dead", ""), ("predictions", "prediction", "lost", ""),
        ("outputs", "output", "dead", "AND category <> 'CANCELLED'"),  # cancelled by request
        ("notifications", "notification", "dead", ""),
    )
} | {
    Check(8, "dead_letters", "alive"): f"""
SELECT 'dead_letter' AS subject, d.id::text AS id, 'open, but its ' || d.subject || ' is ' ||
       coalesce(r.state, 'missing') AS what
  FROM dead_letters d {_ROW_OF} WHERE d.id {_THESE} AND d.state = 'open' AND d.subject <> 'message'
   AND coalesce(r.state NOT IN ('dead', 'lost', 'discarded'), true)""",
    Check(8, "dead_letters", "doubled"): f"""
SELECT 'dead_letter' AS subject, d.id::text AS id, 'another open dead letter exists for its ' || d.subject AS what
  FROM dead_letters d WHERE d.id {_THESE} AND d.state = 'open'
   AND EXISTS (SELECT FROM dead_letters o WHERE (o.subject, o.subject_id) = (d.subject, d.subject_id)
                                           AND o.state = 'open' AND o.id <> d.id)""",
}  # fmt: skip

_THESE_PROJECTS: Final = f"IN (SELECT {build_key_columns('key')} FROM unnest(%(ids)s::text[]) AS key)"

_PLACEMENTS: Final = {
    Check(9, "renders", "unplaced"): f"""
SELECT 'render' AS subject, v.render_id::text AS id, 'variant ' || v.idx || ' has no placement in project ' ||
       j.project_id AS what
  FROM render_variants v JOIN jobs j ON j.id = v.render_id
 WHERE v.render_id {_THESE} AND j.project_id IS NOT NULL
   AND NOT EXISTS (SELECT FROM placements p
                    WHERE (p.render_id, p.idx, p.owner, p.project_id)
                        = (v.render_id, v.idx, j.owner, j.project_id))""",
    Check(9, "renders", "doubled"): f"""
SELECT 'render' AS subject, render_id::text AS id, 'variant ' || idx || ' has ' || count(*) || ' placements' AS what
  FROM placements WHERE render_id {_THESE} GROUP BY render_id, idx HAVING count(*) > 1""",
    Check(9, "jobs", "project"): f"""
SELECT 'job' AS subject, j.id::text AS id, 'project ' || j.project_id || ' does not exist' AS what
  FROM jobs j WHERE j.id {_THESE} AND NOT EXISTS (SELECT FROM projects p
                                              WHERE (p.owner, p.id) = (j.owner, j.project_id))
   AND j.project_id IS NOT NULL""",
    Check(9, "projects", "unowned"): f"""
SELECT 'project' AS subject, p.owner || '/' || p.project_id AS id,
       'placement of unpublished variant ' || p.idx || ' of render ' ||
       p.render_id AS what
  FROM placements p WHERE (p.owner, p.project_id) {_THESE_PROJECTS}
   AND NOT EXISTS (SELECT FROM render_variants v WHERE (v.render_id, v.idx) = (p.render_id, p.idx))""",
    Check(9, "projects", "status"): f"""
SELECT 'project' AS subject, p.owner || '/' || p.id AS id,
       'status is ' || p.status || ', but by its jobs it is ' || {STATUS} AS what
  FROM projects p WHERE (p.owner, p.id) {_THESE_PROJECTS} AND p.status IS DISTINCT FROM {STATUS}""",
}

ROWS: Final[Mapping[Check, str]] = {**_DELIVERIES, **_JOBS, **_RENDERS, **_FILES, **_DEAD_LETTERS, **_PLACEMENTS}
