"""Advice for operators by check, and the checks that can be repaired."""

from collections.abc import Mapping
from typing import Final

from db.audit.check import Check
from tasks.audit.findings import Finding

RULES: Final[Mapping[int, str]] = {
    1: "a webhook answered with 2xx is recorded with its body",
    2: "every waiting row has a time, and every wait ends",
    3: "a render exists exactly when its job was published",
    4: "objects and thumbnails exist and match their rows",
    5: "every object is named by a row",
    6: "a row has at most one live lease; a lost lease changes nothing",
    7: "only allowed transitions were recorded",
    8: "every row that was given up has a dead letter",
    9: "every published file of a project has exactly one placement",
}

_BY_HAND: Final = "compare with a backup; the row or its history was changed by hand or by a bug: keep this report"
_SWEEPS: Final = "sweeps do not run or there are too few workers (moorage status); then moorage audit --repair wakes it"
_REGENERATE: Final = (
    "restore it from a backup, run moorage audit --repair before its source expires, or generate it again"
)

ADVICE: Final[Mapping[str, str]] = {
    "body": "restore the delivery from a backup, or run moorage recover",
    **dict.fromkeys(("digest", "size"), _REGENERATE),
    "bytes": "restore the delivery from a backup",
    "applied": "the prediction was deleted or changed: restore it from a backup",
    "unpublished": "restore the render from a backup; its files are kept",
    **dict.fromkeys((
        "incomplete", "chosen", "unearned", "cover", "uncovered", "standin", "owner", "variant", "foreign",
        "thumbnail", "facts", "key", "quarantine", "doubled", "unowned", "time", "far", "orphaned", "lease", "token",
        "counts", "edge", "chain", "state", "early", "apart", "lost", "thief"
    ), _BY_HAND),
    "unsettled": "moorage audit --repair settles it",
    "filelost": "restore the output from a backup, or run moorage recover",
    "job": "restore the job from a backup",
    "unasked": "restore the prediction from a backup, or run moorage recover",
    "empty": "restore its variants from a backup",
    "untried": "a success was ignored: keep this report, and retry the job (moorage job retry)",
    "unawaited": "no report is awaited: it ends at its deadline or is retried; keep this report",
    **dict.fromkeys(("unwanted", "overdue", "held", "unmatched"), _SWEEPS),
    "nofile": "restore the output from a backup",
    "missing": "an object: " + _REGENERATE + "; a variant: restore it from a backup",
    "silent": "restore the dead letter from a backup: operators do not see the failure without it",
    "alive": "discard the dead letter: moorage dead discard",
    "unplaced": "moorage audit --repair places it",
    "project": "restore the project from a backup",
    "status": "the reconcile sweep corrects it; if it remains, sweeps do not run (moorage status)",
    "document": "moorage audit --repair recomputes it",
    "gone": "restore the row from a backup; or its events were not deleted together with it",
    "unnamed": "the orphan sweep does not run, or more than 1,000 of a kind a night are due: moorage orphans --delete",
}  # fmt: skip

# A repair cannot fetch an upload, which only its owner has, nor a file that was refused.
_UPLOAD_AGAIN: Final = "restore it from a backup, or have its owner upload it again"
_REPLAY: Final = "restore it from a backup, or replay its dead letter while its source lives: moorage dead replay"
OBJECT_ADVICE: Final[Mapping[Check, str]] = {
    Check(4, scope, code): advice
    for scope, advice in (("uploads", _UPLOAD_AGAIN), ("quarantine", _REPLAY))
    for code in ("missing", "size", "digest")
}

REPAIRABLE: Final = frozenset(
    {
        *(Check(2, table, "overdue") for table in ("deliveries", "jobs", "predictions", "outputs", "notifications")),
        *(Check(2, table, "held") for table in ("deliveries", "predictions", "outputs", "notifications")),
        Check(3, "jobs", "unsettled"),
        *(Check(4, "objects", code) for code in ("missing", "size", "digest")), Check(4, "sample", "digest"),
        Check(9, "renders", "unplaced"), Check(9, "projects", "document"),
    }
)  # fmt: skip


def get_advice(finding: Finding) -> str:
    return OBJECT_ADVICE.get(finding.check) or ADVICE[finding.check.code]
