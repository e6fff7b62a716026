"""The audit: checks the rules of docs/design.md 5 over PostgreSQL and storage. It changes nothing."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Final

from db import audit as rules
from db import inventory
from tasks import audit_documents, audit_objects
from tasks.audit_finding import Finding
from tasks.deps import Deps

MOST: Final = 1000  # findings of one check that are listed: a report of a million helps nobody


@dataclass(frozen=True, slots=True)
class AuditReport:
    """
    What an audit found.

    Attributes:
        findings: what breaks a rule, and still did at the second look.
        checked: how much was looked at: rows by table, `objects`, and `bytes` re-read by a deep audit.
        notes: what breaks none but is worth knowing: objects of work in flight.
        is_cut: a check found more than 1,000; the rest is not listed.
    """

    findings: list[Finding]
    checked: dict[str, int]
    notes: list[Finding] = field(default_factory=list)
    is_cut: bool = False


def run(deps: Deps, *, deep: bool = False, second_look_seconds: float = 3.0) -> AuditReport:
    """
    Check every rule; memory stays bounded by pages, short transactions only.

    Rows in flight look wrong for a moment, so that what is found counts only if a second look still sees it.

    Args:
        deep: also read every kept object again and compare its digest.
        second_look_seconds: how long to wait before the second look; none is taken when nothing was found.

    Raises:
        DatabaseUnavailable, StorageUnavailable, StorageRefused: they did not answer; nothing can be said.
    """
    walk = audit_objects.Walk(deps, deep=deep)
    first = {name: _most(look()) for name, look in _looks(deps).items()}
    stored = _most(walk.run())
    if stored or any(first.values()):
        time.sleep(second_look_seconds)
    again = _looks(deps)
    found = [finding for name, seen in first.items() if seen for finding in _still(seen, again[name]())]
    found += _still(stored, walk.again(stored)) if stored else []
    cut = any(len(seen) == MOST for seen in (*first.values(), stored))
    checked = {**deps.database.run(inventory.counts), **walk.checked}
    return AuditReport(sorted(found), checked, walk.notes, cut)


def _looks(deps: Deps) -> dict[str, Callable[[], Iterable[Finding]]]:
    """Return every check but that of storage, by name."""
    looks: dict[str, Callable[[], Iterable[Finding]]] = {name: partial(_rows, deps, name) for name in rules.CHECKS}
    return looks | {"9 documents": partial(audit_documents.look, deps)}


def _rows(deps: Deps, name: str) -> Iterator[Finding]:
    lease_seconds = deps.settings.lease_seconds
    found = deps.database.run(lambda conn: rules.broken(conn, name, lease_seconds=lease_seconds, limit=MOST))
    rule = int(name.split()[0])
    return (Finding(rule, row["subject"], row["id"], row["what"]) for row in found)


def _most(found: Iterable[Finding]) -> list[Finding]:
    return list(islice(found, MOST))


def _still(first: list[Finding], second: Iterable[Finding]) -> list[Finding]:
    """Return what the second look found of the first; words with a time or a count in them may have changed."""
    seen = {finding.key for finding in first}
    return [finding for finding in second if finding.key in seen]
