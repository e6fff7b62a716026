"""
The stand-in's record of what it did, one line per occurrence in memory and in a file, and an index for its readers.

Kinds of lines, each with the time `at`:

    submission  provider, model, webhook, fault, prediction (null: not created), http_status (null: no response)
    prediction  prediction, provider, model, webhook, key (of the webhook URL), prompt, status        created
    input       prediction, name, status, sha256, bytes                  an input file was downloaded
    ended       prediction, status
    webhook     provider, prediction, webhook_id, event, status, attempt, signed (correctly), http_status or error
    output      prediction, path, url (null: inline), sha256, bytes, content_type, fault, expected, why, expires_at
    served      prediction, path, status, sent (bytes), complete, token_sent
    renewed     prediction, path, url                  a poll returned a new URL
    trap        path, token_sent                       a private address was requested: an egress guard is open
"""

import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

Line = dict[str, Any]


def format_time(time: datetime | None = None) -> str:
    """Return a time, by default now, in the format of Replicate's API."""
    return (time or datetime.now(UTC)).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Ledger:
    """Lines in order of occurrence."""

    def __init__(self, path: Path | None = None) -> None:
        self._lines: list[Line] = []
        self._lock = threading.Lock()
        self._file = path.open("a", encoding="utf-8", buffering=1) if path else None

    def add(self, kind: str, **fields: Any) -> None:
        line = {"at": format_time(), "kind": kind, **fields}
        with self._lock:
            self._lines.append(line)
            if self._file:
                self._file.write(json.dumps(line) + "\n")

    def lines(self) -> list[Line]:
        with self._lock:
            return list(self._lines)


def summarise(lines: Iterable[Line]) -> dict[str, Any]:
    """
    Return totals of the lines.

    Keys: predictions (count), webhook_attempts, acknowledged (webhook-id to prediction and status, for those with a 2xx
    response), unacknowledged (the same for the rest), wrongly_signed_accepted (must be empty), expected (kept, dead,
    preview, unseen: lists of output lines; unseen: of a prediction whose id no client received), served_whole (pairs of
    prediction and path), traps (count, must be 0).
    """
    by_kind: dict[str, list[Line]] = {}
    for line in lines:
        by_kind.setdefault(line["kind"], []).append(line)
    attempts, created, outputs = (by_kind.get(kind, []) for kind in ("webhook", "prediction", "output"))
    acknowledged = {a["webhook_id"]: _describe(a) for a in attempts if is_acknowledged(a) and a["signed"]}
    return {
        "predictions": len(created),
        "webhook_attempts": len(attempts),
        "acknowledged": acknowledged,
        "unacknowledged": {a["webhook_id"]: _describe(a) for a in attempts if a["webhook_id"] not in acknowledged},
        "wrongly_signed_accepted": [a["webhook_id"] for a in attempts if is_acknowledged(a) and not a["signed"]],
        "expected": {e: [o for o in outputs if o["expected"] == e] for e in ("kept", "dead", "preview", "unseen")},
        "served_whole": sorted({(s["prediction"], s["path"]) for s in by_kind.get("served", []) if s["complete"]}),
        "traps": len(by_kind.get("trap", [])),
    }


def is_acknowledged(attempt: Line) -> bool:
    """Return True if a webhook attempt got a 2xx response."""
    return attempt["http_status"] is not None and 200 <= attempt["http_status"] < 300


def _describe(attempt: Line) -> dict[str, Any]:
    return {key: attempt[key] for key in ("prediction", "event", "status")}


@dataclass(frozen=True, slots=True)
class LedgerIndex:
    """The ledger's summary (see `summarise`), and its lines by prediction or prompt."""

    summary: Mapping[str, Any]
    created: Mapping[str, list[Line]]  # lines of predictions, by prompt
    statuses: Mapping[str, str]  # of ended predictions
    files: Mapping[str, Mapping[str, Line]]  # lines of outputs that may be published, by prediction and path
    reported: frozenset[str]  # predictions whose end was reported by an acknowledged webhook
    of_fal: Mapping[str, str]  # prediction ids by the webhook ids of fal

    @classmethod
    def build(cls, ledger: Mapping[str, Any]) -> Self:
        created: dict[str, list[Line]] = {}
        files: dict[str, dict[str, Line]] = {}
        statuses, reported, of_fal = {}, set(), {}
        for line in ledger["lines"]:
            match line["kind"]:
                case "prediction":
                    created.setdefault(str(line["prompt"]), []).append(line)
                case "ended":
                    statuses[line["prediction"]] = line["status"]
                case "output" if line["expected"] in ("kept", "unseen"):
                    files.setdefault(line["prediction"], {})[line["path"]] = line
                case "webhook":
                    if line["event"] == "completed" and is_acknowledged(line):
                        reported.add(line["prediction"])
                    if line["provider"] == "fal":
                        of_fal[line["webhook_id"]] = line["prediction"]
        return cls(ledger["summary"], created, statuses, files, frozenset(reported), of_fal)

    def webhook_ids(self, kind: str) -> set[str]:
        """Return the ids of "acknowledged" or "unacknowledged" webhooks; fal's are identified by the prediction."""
        return {self.of_fal.get(webhook_id, webhook_id) for webhook_id in self.summary[kind]}
