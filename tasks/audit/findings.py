"""Findings of an audit, and the interface of its scans."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Protocol

from db.audit.check import Check

MAX_LISTED: Final = 1000  # findings per check in a report


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One violation of a rule."""

    rule: int  # its number in docs/design.md 5
    subject: str  # a table in the singular, or "object"
    id: str  # of the row, or the object's key
    what: str
    check: Check

    @property
    def key(self) -> tuple[Check, str]:
        """Return the identity of a finding: a time or count in `what` may change."""
        return self.check, self.id


@dataclass(slots=True)
class Tally:
    """Counts and findings."""

    checked: Counter[str] = field(default_factory=Counter)  # by scan
    found: Counter[Check] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)  # the first 1,000 of each check
    notes: list[Finding] = field(default_factory=list)  # the first 1,000 observations that violate no rule

    def add(self, finding: Finding) -> None:
        self.found[finding.check] += 1
        if self.found[finding.check] <= MAX_LISTED:
            self.findings.append(finding)

    def add_note(self, finding: Finding) -> None:
        if len(self.notes) < MAX_LISTED:
            self.notes.append(finding)


class Scan(Protocol):
    """Checks rows or objects page by page, in the order of their keys."""

    @property
    def name(self) -> str: ...

    def check_page(self, tally: Tally, after: str) -> str | None:
        """Add the page after a key ("" for the first page) to the tally; return its last key, None at the end."""

    def recheck(self, findings: list[Finding]) -> list[Finding]:
        """Check the subjects of these findings again; returns the present findings."""
