"""The identity of one check of the audit."""

from typing import NamedTuple


class Check(NamedTuple):
    """
    A check of the audit; its text, such as "3 renders cover", is its name in reports.

    Args:
        rule: its number in docs/design.md.
        scope: what it reads: a table, the events of a subject (`job_events`), objects, inputs, uploads or sample.
        code: the violation, which selects advice and repair.
    """

    rule: int
    scope: str
    code: str

    def __str__(self) -> str:
        """Return its name in reports."""
        return f"{self.rule} {self.scope} {self.code}"
