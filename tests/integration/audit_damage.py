"""Damage done by hand to the rows of a database without rules, by the check that must name it."""

from collections.abc import Mapping
from typing import Final

_LIVE: Final = {
    "deliveries": "new", "jobs": "open", "predictions": "running", "outputs": "waiting", "notifications": "waiting",
}  # fmt: skip
_LEASED: Final = ("deliveries", "predictions", "outputs", "notifications")
_SUBJECT: Final = {
    "deliveries": "delivery", "jobs": "job", "predictions": "prediction", "outputs": "output", "renders": "render",
    "dead_letters": "dead_letter", "notifications": "notification",
}  # fmt: skip
_TOKEN: Final = "'6f1d2a3e-57c1-4b8e-9a51-5b3f8f2f7d10'"

_ON_WORK: Final = {
    name: sql
    for table, live in _LIVE.items()
    for name, sql in {
        f"2 {table} time": f"UPDATE {table} SET state = '{live}', run_at = NULL",
        f"2 {table} far": f"UPDATE {table} SET state = '{live}', run_at = moment() + interval '1 y'",
        f"2 {table} overdue": f"UPDATE {table} SET state = '{live}', run_at = moment() - interval '1 h'",
    }.items()
} | {
    name: sql
    for table in _LEASED
    for name, sql in {
        f"2 {table} held": f"UPDATE {table} SET lease_token = {_TOKEN}, leased_until = moment() - interval '1 h'",
        f"6 {table} lease": f"UPDATE {table} SET lease_token = {_TOKEN}, leased_until = moment() + interval '1 d'",
        f"6 {table} token": f"UPDATE {table} SET lease_token = {_TOKEN}",
        f"6 {table} counts": f"UPDATE {table} SET crashes = crashes - 1",
    }.items()
}

_ON_HISTORY: Final = {
    name: sql
    for table, subject in _SUBJECT.items()
    for name, sql in {
        f"7 {table} edge": f"UPDATE events SET to_state = 'nowhere' WHERE subject = '{subject}'",
        f"7 {table} chain": "INSERT INTO events (subject, subject_id, job_id, from_state, to_state, actor)"
        f" SELECT subject, subject_id, job_id, from_state, to_state, actor FROM events WHERE subject = '{subject}'",
        f"7 {table} state": f"DELETE FROM events WHERE subject = '{subject}'",
        f"7 {subject}_events gone": f"DELETE FROM {table}",
    }.items()
} | {
    "7 jobs early": "UPDATE events SET id = id + 1000 WHERE subject = 'output' AND to_state = 'kept'",
    "7 jobs unpublished": "UPDATE events SET id = id + 1000 WHERE subject = 'render'",
    "7 renders apart": "UPDATE events SET id = id + 1000 WHERE subject = 'render'",
    # what a worker does that writes after a sweep took its row away
    "6 outputs lost": "INSERT INTO events (subject, subject_id, job_id, from_state, to_state, kind, lease, actor)"
    " SELECT 'output', id, job_id, 'waiting', 'waiting', 'lease_expired', substring(key FROM '-([0-9a-f]{8})[.]'), 'x'"
    " FROM outputs WHERE key IS NOT NULL",
    "6 outputs thief": "UPDATE outputs SET thumb_key = replace(thumb_key, '_thumb', '0_thumb')",
}

_ON_ROWS: Final = {
    "1 deliveries body": "UPDATE deliveries SET body = NULL, state = 'new', run_at = moment()",
    "1 deliveries digest": "UPDATE deliveries SET webhook_id = 'sha256:' || repeat('0', 64)",
    "1 deliveries bytes": "UPDATE deliveries SET body = set_byte(body, 3, get_byte(body, 3) # 1)",
    "1 deliveries applied": "UPDATE deliveries SET prediction_id = NULL",
    "2 deliveries unmatched": "UPDATE deliveries SET state = 'unmatched', run_at = moment(),"
    " unmatched_until = moment() - interval '1 d'",
    "2 outputs orphaned": "UPDATE outputs SET state = 'waiting', run_at = moment()",
    "3 jobs unpublished": "DELETE FROM renders",
    "3 jobs incomplete": "UPDATE outputs SET state = 'dead' WHERE idx = 1",
    "3 jobs unsettled": "UPDATE jobs SET state = 'keeping', settled_at = NULL, run_at = moment()",
    "3 jobs filelost": "DELETE FROM outputs WHERE idx = 0",
    "3 jobs chosen": "UPDATE jobs SET chosen_id = NULL",
    "3 jobs unasked": "DELETE FROM predictions",
    "3 predictions job": "DELETE FROM jobs",
    "3 renders unearned": "UPDATE jobs SET state = 'failed'",
    "3 renders empty": "DELETE FROM render_variants",
    "3 renders cover": "UPDATE renders SET cover_idx = 7",
    "7 jobs untried": "WITH r AS (DELETE FROM renders), o AS (DELETE FROM outputs) UPDATE jobs SET state = 'failed'",
    "2 jobs unawaited": "UPDATE jobs SET state = 'open', settled_at = NULL, run_at = moment()",
    "2 predictions unwanted": "UPDATE predictions SET state = 'planned'",
    "3 jobs standin": "UPDATE outputs SET is_placeholder = true",
    "3 renders uncovered": "UPDATE outputs SET is_placeholder = true WHERE idx = 0",
    "3 renders owner": "UPDATE renders SET owner = 'thief'",
    "3 renders nofile": "UPDATE render_variants SET output_id = gen_random_uuid()",
    "3 outputs variant": "UPDATE render_variants SET idx = idx + 5",
    "3 outputs missing": "DELETE FROM render_variants WHERE idx = 1",
    "3 outputs foreign": "UPDATE outputs SET prediction_id = gen_random_uuid()",
    "4 outputs thumbnail": "UPDATE outputs SET thumb_key = NULL",
    "4 outputs facts": "UPDATE outputs SET sha256 = NULL",
    "4 outputs quarantine": "UPDATE outputs SET quarantine_key = 'quarantine/' || id",
    "4 outputs key": "UPDATE outputs SET key = replace(key, job_id::text, id::text)",
    "8 deliveries silent": "DELETE FROM dead_letters",
    "8 predictions silent": "UPDATE predictions SET state = 'lost'",
    "8 outputs silent": "DELETE FROM dead_letters",
    "8 notifications silent": "UPDATE notifications SET state = 'dead', category = 'NOTIFY_FAILED', run_at = NULL",
    "8 dead_letters alive": "UPDATE outputs SET state = 'waiting' WHERE state = 'dead'",
    "8 dead_letters doubled": "INSERT INTO dead_letters (id, subject, subject_id, step, category, error, reason,"
    " retryable) SELECT gen_random_uuid(), subject, subject_id, step, category, error, reason, true FROM dead_letters",
    "9 renders doubled": "INSERT INTO placements SELECT * FROM placements",
    "9 renders unplaced": "DELETE FROM placements WHERE idx = 0",
    "9 jobs project": "DELETE FROM projects",
    "9 projects unowned": "UPDATE placements SET idx = idx + 5",
    "9 projects status": "UPDATE projects SET status = CASE status WHEN 'open' THEN 'assets_generated' ELSE 'open' END",
    "9 projects document": "UPDATE placements SET scene_key = 'id:7'",
}

DAMAGE: Final[Mapping[str, str]] = {**_ON_WORK, **_ON_HISTORY, **_ON_ROWS}

# More ways to do what one of these checks is there for.
ALSO: Final[Mapping[str, tuple[str, str]]] = {
    "a lease has no end": (
        "6 outputs lease",
        "UPDATE outputs SET state = 'waiting', run_at = moment(), lease_token = gen_random_uuid(), leased_by = 'x'",
    ),
    "a document is overwritten": (
        "9 projects document",
        """UPDATE projects SET document = '{"scenes": [{"imageUrls": ["x"]}]}'""",
    ),
    "an end is doubled": (
        "7 outputs edge",
        "UPDATE events SET from_state = 'kept' WHERE subject = 'output' AND to_state = 'kept'",
    ),
    "an event is lost": ("7 jobs chain", "DELETE FROM events WHERE subject = 'job' AND to_state = 'keeping'"),
}

# Tables whose rows no rule is about, and why the loss of one proves nothing.
UNAUDITED: Final[Mapping[str, str]] = {
    "schema_migrations": "a process checks it when it starts",
    "ticks": "clean-up takes old ones; a lost one lets a sweep run twice, which does no harm",
    "cursors": "a lost place lets a sweep begin at the start",
    "pauses": "a person made it, and only a person knows it",
    "breakers": "a lost one is a closed one, which opens again while its target fails",
    "work_totals": "counts for /metrics, which restart from zero",
    "target_attempts": "of the last minute; without them a breaker opens later",
    "erasures": "a person requested it, and only a person knows it",
    "erased_predictions": "a lost one lets a late webhook of an erased owner end unmatched",
    "webhook_refusals": "counted for the status only",
    "storage_use": "counted anew each hour",
    "ended_counts": "counted anew within two hours",
    "api_tokens": "nothing refers to one, and whoever carries a lost one is answered 401",
    "owner_token_revocations": "nothing refers to one; the token that it refused expires within a day",
    "uploads": "its object is then one that no row names, which the orphan sweep tells of",
}
