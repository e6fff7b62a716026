"""
What the stand-in did, written by the stand-in alone: one line for each thing, in memory and as JSON lines in a file.

Kinds of lines, each with `at`:

    submission  provider, model, webhook, fault, prediction (null: not made), answer (null: none was given)
    prediction  prediction, provider, model, webhook, key (of the webhook address), prompt, status    made
    input       prediction, name, status, sha256, bytes                  a file that the input names was fetched
    ended       prediction, status                     reached its end
    webhook     provider, prediction, webhook_id, event, status, attempt, signed (rightly), answer (HTTP code) or error
    output      prediction, path, url (null: inline), sha256, bytes, content_type, fault, expected, why, dies_at
    served      prediction, path, status, sent (bytes), complete, token_sent
    renewed     prediction, path, url                  a poll named a fresh URL
    trap        path, token_sent                       a private address was visited: some guard is open
"""

import json
import threading
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def stamp(at: datetime | None = None) -> str:
    """Return a moment, by default this one, as the API writes it."""
    return (at or datetime.now(UTC)).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Ledger:
    """Lines in the order in which things happened."""

    def __init__(self, path: Path | None = None) -> None:
        self._lines: list[Line] = []
        self._lock = threading.Lock()
        self._file = path.open("a", encoding="utf-8", buffering=1) if path else None

    def add(self, kind: str, **fields: Any) -> None:
        """Write one line."""
        line = {"at": stamp(), "kind": kind, **fields}
        with self._lock:
            self._lines.append(line)
            if self._file:
                self._file.write(json.dumps(line) + "\n")

    def lines(self) -> list[Line]:
        """Return all lines so far."""
        with self._lock:
            return list(self._lines)


def summarise(lines: Iterable[Line]) -> dict[str, Any]:
    """
    Return what the lines add up to.

    Keys: predictions (count), made_by_provider and made_by_key (the same by provider, and by the `key` in the query of
    the webhook address), submissions (count by fault), ended (count by status), webhook_attempts, acknowledged
    (webhook-id to its prediction and status, for those answered 2xx), unacknowledged (the same for the rest),
    wrongly_signed_accepted (a list that must be empty), expected (kept, dead, preview, unseen: lists of output lines;
    unseen: made, and told to nobody), served_whole (pairs of prediction and path), traps (count, must be 0).
    """
    by_kind: dict[str, list[Line]] = {}
    for line in lines:
        by_kind.setdefault(line["kind"], []).append(line)
    attempts = by_kind.get("webhook", [])
    acknowledged = {a["webhook_id"]: _about(a) for a in attempts if _accepted(a) and a["signed"]}
    outputs = by_kind.get("output", [])
    made = by_kind.get("prediction", [])
    return {
        "predictions": len(made),
        "made_by_provider": dict(Counter(line["provider"] for line in made)),
        "made_by_key": dict(Counter(line["key"] for line in made if line["key"])),
        "submissions": dict(Counter(line["fault"] for line in by_kind.get("submission", []))),
        "ended": dict(Counter(line["status"] for line in by_kind.get("ended", []))),
        "webhook_attempts": len(attempts),
        "acknowledged": acknowledged,
        "unacknowledged": {a["webhook_id"]: _about(a) for a in attempts if a["webhook_id"] not in acknowledged},
        "wrongly_signed_accepted": [a["webhook_id"] for a in attempts if _accepted(a) and not a["signed"]],
        "expected": {e: [o for o in outputs if o["expected"] == e] for e in ("kept", "dead", "preview", "unseen")},
        "served_whole": sorted({(s["prediction"], s["path"]) for s in by_kind.get("served", []) if s["complete"]}),
        "traps": len(by_kind.get("trap", [])),
    }


def _accepted(attempt: Line) -> bool:
    return attempt["answer"] is not None and 200 <= attempt["answer"] < 300


def _about(attempt: Line) -> dict[str, Any]:
    return {key: attempt[key] for key in ("prediction", "event", "status")}
