"""What to do about a finding, by the code of its check; and which findings a repair can try."""

from collections.abc import Mapping
from typing import Final

from db.audit.check import Check
from tasks.audit.findings import Finding

RULES: Final[Mapping[int, str]] = {
    1: "a webhook answered 2xx is recorded with its bytes",
    2: "nothing waits without a time, and every wait ends",
    3: "a render exists exactly when its job was published",
    4: "objects and thumbnails exist and are what was recorded",
    5: "no object lies about that nobody names",
    6: "one live lease a row; a lost one changes nothing",
    7: "only edges that may be taken were taken",
    8: "what was given up on is a dead letter",
    9: "every published file of a project has one place",
}

_BY_HAND: Final = "compare with a backup; the row or its history was changed by hand or by a bug: keep this report"
_SWEEPS: Final = "sweeps do not run, or workers are too few: moorage status; then moorage audit --repair wakes it"
_REGENERATE: Final = "restore it from a backup, or moorage audit --repair while the source lives; or make it anew"

ADVICE: Final[Mapping[str, str]] = {
    "body": "restore the delivery from a backup, or ask the provider: moorage recover",
    "digest": _REGENERATE,
    "bytes": "restore the delivery from a backup",
    "applied": "the prediction is gone or was changed: restore it from a backup",
    "unpublished": "restore the render from a backup; its files are kept",
    "incomplete": _BY_HAND,
    "unsettled": "moorage audit --repair settles it",
    "filelost": "restore the output from a backup, or ask the provider: moorage recover",
    "chosen": _BY_HAND,
    "job": "restore the job from a backup",
    "unasked": "restore the prediction from a backup, or ask the provider: moorage recover",
    "unearned": _BY_HAND,
    "empty": "restore its variants from a backup",
    "cover": _BY_HAND,
    "uncovered": _BY_HAND,
    "standin": _BY_HAND,
    "unawaited": "nothing can come any more: it ends at its deadline, or is tried again; keep this report",
    "unwanted": _SWEEPS,
    "owner": _BY_HAND,
    "nofile": "restore the output from a backup",
    "variant": _BY_HAND,
    "missing": "an object: " + _REGENERATE + "; a variant: restore it from a backup",
    "foreign": _BY_HAND,
    "thumbnail": _BY_HAND,
    "facts": _BY_HAND,
    "key": _BY_HAND,
    "silent": "restore the dead letter from a backup: without it nobody is told",
    "alive": "discard the dead letter: moorage dead discard",
    "doubled": _BY_HAND,
    "unplaced": "moorage audit --repair places it",
    "project": "restore the project from a backup",
    "unowned": _BY_HAND,
    "status": "the reconcile sweep corrects it: if it stays, sweeps do not run (moorage status)",
    "document": "moorage audit --repair computes it anew",
    "time": _BY_HAND,
    "far": _BY_HAND,
    "overdue": _SWEEPS,
    "held": _SWEEPS,
    "unmatched": _SWEEPS,
    "orphaned": _BY_HAND,
    "lease": _BY_HAND,
    "token": _BY_HAND,
    "counts": _BY_HAND,
    "edge": _BY_HAND,
    "chain": _BY_HAND,
    "state": _BY_HAND,
    "early": _BY_HAND,
    "apart": _BY_HAND,
    "lost": _BY_HAND,
    "thief": _BY_HAND,
    "gone": "restore the row from a backup, or its events were not deleted with it",
    "size": _REGENERATE,
    "unnamed": "the orphan sweep does not run: moorage orphans",
}

# An input file was sent once, by its owner: no repair can have it again.
_AGAIN: Final = "restore it from a backup, or ask its owner to upload it again"
UPLOAD_ADVICE: Final[Mapping[Check, str]] = {
    Check(4, "uploads", code): _AGAIN for code in ("missing", "size", "digest")
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
    """Return what a person does about it."""
    return UPLOAD_ADVICE.get(finding.check) or ADVICE[finding.check.code]
