"""The identity of one check of the audit."""

from typing import NamedTuple


class Check(NamedTuple):
    """A check of the audit; its text, such as "3 renders cover", is its name in reports."""

    rule: int  # its number in docs/design.md
    scope: str  # what it reads: a table, the events of a subject (`job_events`), a listing (`uploads`) or sample
    code: str  # the violation, which selects advice and repair

    def __str__(self) -> str:
        return f"{self.rule} {self.scope} {self.code}"
