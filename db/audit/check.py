"""The identity of one check of the audit, and statements of checks from their conditions."""

from typing import Final, NamedTuple

SUBJECTS: Final = {
    "deliveries": "delivery", "jobs": "job", "predictions": "prediction", "outputs": "output", "renders": "render",
    "notifications": "notification", "dead_letters": "dead_letter",
}  # fmt: skip


class Check(NamedTuple):
    """A check of the audit; its text, such as "3 renders cover", is its name in reports."""

    rule: int  # its number in docs/design.md
    scope: str  # what it reads: a table, the events of a subject (`job_events`), a listing (`uploads`) or sample
    code: str  # the violation, which selects advice and repair

    def __str__(self) -> str:
        return f"{self.rule} {self.scope} {self.code}"


def build_checks(*checks: tuple[int, str, str, str, str, str]) -> dict[Check, str]:
    """
    Return checks of rows, given as rule, table, code, what is wrong, joins and condition.

    The last three are SQL, in which `t` is the table. What a constraint guarantees may be checked as well: a restore
    may lose it, or disable its trigger.
    """
    return {
        Check(rule, table, code): f"""
SELECT '{SUBJECTS[table]}' AS subject, t.id::text AS id, {what} AS what
  FROM {table} t {joins} WHERE t.id = ANY(%(ids)s::uuid[]) AND {condition}"""
        for rule, table, code, what, joins, condition in checks
    }
