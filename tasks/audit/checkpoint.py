"""How far an audit is and what it found so far, kept in PostgreSQL so that an interrupted one goes on."""

import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final

from db.audit import checkpoint
from db.connection import current_time
from moorage.errors import DatabaseUnavailable, Refused
from tasks.audit.findings import Finding, Page, Tally
from tasks.step import Deps

SAVE_SECONDS: Final = 2.0


@dataclass(slots=True)
class AuditProgress(Tally):
    """
    A tally with a place in the walk.

    Attributes:
        place, after: what is looked at next.
        drawn: ids of outputs drawn so far; each of `seen` ones has the same chance to be among them.
        interruptions: how often it was resumed.
        found_monotonic: when the last finding was made, None when a run before this one made it.
    """

    started_at: datetime = field(kw_only=True)
    deep: bool = field(kw_only=True)
    sample: int = field(kw_only=True)
    place: str = ""
    after: str = ""
    drawn: list[str] = field(default_factory=list)
    seen: int = 0
    interruptions: int = 0
    found_monotonic: float | None = None

    def add_page(self, page: Page) -> None:
        """Add what a page gave."""
        self.checked += page.checked
        for finding in page.findings:
            self.add(finding)
        for check, count in page.found.items():
            self.found[check] += count - sum(finding.check == check for finding in page.findings)
        for note in page.notes:
            self.add_note(note)
        for output_id in page.kept:
            self._draw(output_id)
        if page.findings:
            self.found_monotonic = time.monotonic()

    def _draw(self, output_id: str) -> None:
        """Keep an even sample of all outputs seen. Source: J. Vitter, "Random Sampling with a Reservoir", 1985."""
        self.seen += 1
        if len(self.drawn) < self.sample:
            self.drawn.append(output_id)
        elif self.sample and (slot := random.SystemRandom().randrange(self.seen)) < self.sample:
            self.drawn[slot] = output_id


def start_progress(deps: Deps, *, deep: bool, sample: int) -> AuditProgress:
    """Return the progress of an audit that begins."""
    return AuditProgress(started_at=deps.database.run(current_time), deep=deep, sample=0 if deep else sample)


def resume_progress(deps: Deps) -> AuditProgress:
    """Return the progress of the audit that was interrupted. Raises Refused when the last one came to its end."""
    saved = deps.database.run(checkpoint.saved)
    if saved is None:
        raise Refused("no audit was interrupted: run it without --resume", status=409)
    place, after, facts = saved
    return AuditProgress(
        checked=Counter(facts["checked"]),
        found=Counter(facts["found"]),
        findings=[Finding(*values) for values in facts["findings"]],
        notes=[Finding(*values) for values in facts["notes"]],
        started_at=datetime.fromisoformat(facts["started_at"]),
        deep=facts["deep"],
        sample=facts["sample"],
        place=place,
        after=after,
        drawn=facts["drawn"],
        seen=facts["seen"],
        interruptions=facts["interruptions"] + 1,
    )


def _facts(progress: AuditProgress) -> dict[str, Any]:
    return {
        "checked": dict(progress.checked),
        "found": dict(progress.found),
        "findings": [astuple(finding) for finding in progress.findings],
        "notes": [astuple(note) for note in progress.notes],
        "started_at": progress.started_at.isoformat(),
        "deep": progress.deep,
        "sample": progress.sample,
        "drawn": progress.drawn,
        "seen": progress.seen,
        "interruptions": progress.interruptions,
    }


class Checkpointer:
    """Saves the progress every two seconds."""

    def __init__(self, deps: Deps, progress: AuditProgress) -> None:
        self._deps, self._progress = deps, progress
        self._saved = -SAVE_SECONDS

    def save_in_time(self) -> None:
        """Save it if that is due."""
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Save it now."""
        done = self._progress
        work = partial(checkpoint.save, place=done.place, after_key=done.after, facts=_facts(done))
        self._deps.database.run(work)
        self._saved = time.monotonic()


@contextlib.contextmanager
def save_periodically(deps: Deps, progress: AuditProgress) -> Iterator[Checkpointer]:
    """Save the progress when the audit inside is interrupted, if PostgreSQL answers; forget it when it ends."""
    keeper, ended = Checkpointer(deps, progress), False
    try:
        yield keeper
        ended = True
    finally:
        if not ended:
            with contextlib.suppress(DatabaseUnavailable):
                keeper.save()
    deps.database.run(checkpoint.forget)
