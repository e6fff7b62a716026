"""One line of an audit."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """
    A rule, the thing that breaks it, and what is wrong with it.

    Args:
        rule: its number in docs/design.md 5.
        subject: delivery, job, prediction, output, render, dead_letter, project, or object.
        id: the row's id, or the object's key.
    """

    rule: int
    subject: str
    id: str
    what: str

    @property
    def key(self) -> tuple[int, str, str]:
        """Return what makes two findings the same."""
        return self.rule, self.subject, self.id
