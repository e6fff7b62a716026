"""One line of an audit, and what a page of one found."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Protocol

from db.audit.check import Check

MAX_LISTED: Final = 1000  # findings of one check that are listed: a report of a million helps nobody


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """
    A rule, the thing that breaks it, and what is wrong with it.

    Args:
        rule: its number in docs/design.md 5.
        subject: delivery, job, prediction, output, render, dead_letter, project, upload, or object.
        id: the row's id, or the object's key.
        check: what found it.
    """

    rule: int
    subject: str
    id: str
    what: str
    check: Check

    @property
    def key(self) -> tuple[Check, str]:
        """Return what makes two findings the same; a time or a count in `what` may have changed."""
        return self.check, self.id


@dataclass(slots=True)
class Tally:
    """
    What was looked at and found.

    Attributes:
        checked: how much was looked at, by place.
        found: findings by check; `findings` lists the first 1,000 of each.
        notes: what breaks no rule but is worth knowing, the first 1,000.
    """

    checked: Counter[str] = field(default_factory=Counter)
    found: Counter[Check] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """Count a finding, and list it while there is room."""
        self.found[finding.check] += 1
        if self.found[finding.check] <= MAX_LISTED:
            self.findings.append(finding)

    def add_note(self, finding: Finding) -> None:
        """List what is worth knowing, while there is room."""
        if len(self.notes) < MAX_LISTED:
            self.notes.append(finding)

    def add_page(self, page: "Page") -> None:
        """Add the counts, findings and notes of a page."""
        self.checked += page.checked
        for finding in page.findings:
            self.add(finding)
        for check, count in page.found.items():
            self.found[check] += count - sum(finding.check == check for finding in page.findings)
        for note in page.notes:
            self.add_note(note)


@dataclass(slots=True)
class Page(Tally):
    """What one page of a place gave; `after` is its last key, None at the end of the place."""

    after: str | None = None


class Scan(Protocol):
    """A sequence of rows or objects with keys, gone through page by page."""

    @property
    def name(self) -> str:
        """Return what checks call it."""

    def page(self, after: str) -> Page:
        """Look at the next page behind a key ("" for the first)."""

    def recheck(self, findings: list[Finding]) -> list[Finding]:
        """Look a second time at what was found here, and at nothing else."""
