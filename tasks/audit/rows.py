"""The audit of rows: every check of db/audit/checks.py over pages of keys, one page in memory."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from db.audit import checks as rules
from db.audit.check import Check
from tasks.audit import documents
from tasks.audit.findings import Finding, Page
from tasks.step import Deps

PAGE: Final = 500
OVERDUE_SECONDS: Final = 900.0  # so late is no row while sweeps and workers run
DOCUMENT_CHECK: Final = Check(9, "projects", "document")


@dataclass(frozen=True, slots=True)
class RowScan:
    """The rows of a table, or those that events tell of."""

    deps: Deps
    name: str
    deep: bool

    def page(self, after: str) -> Page:
        """Look at the next 500 rows."""
        keys = self.deps.database.run(partial(rules.list_keys, scope=self.name, after=after, limit=PAGE))
        page = Page(after=keys[-1] if len(keys) == PAGE else None)
        page.checked["histories" if self.name.endswith("_events") else self.name] += len(keys)
        for check in self._checks() if keys else ():
            for finding in self._ask(check, keys):
                page.add(finding)
        return page

    def recheck(self, findings: list[Finding]) -> list[Finding]:
        """Ask each check once more for the rows that it found."""
        asked: dict[Check, dict[str, None]] = defaultdict(dict)  # one row may break a rule more than once
        for finding in findings:
            asked[finding.check][finding.id] = None
        return [
            found for check, keys in asked.items() for part in _parts(list(keys)) for found in self._ask(check, part)
        ]

    def _checks(self) -> list[Check]:
        return rules.list_checks(self.name, deep=self.deep) + ([DOCUMENT_CHECK] if self.name == "projects" else [])

    def _ask(self, check: Check, keys: Sequence[str]) -> Iterable[Finding]:
        if check == DOCUMENT_CHECK:
            return documents.check_documents(self.deps, keys, check)
        args = statement_parameters(self.deps)
        found = self.deps.database.run(lambda conn: rules.find_violations(conn, check, keys, args))
        return (Finding(check.rule, row["subject"], row["id"], row["what"], check) for row in found)


def statement_parameters(deps: Deps) -> dict[str, Any]:
    """Return what the statements of the rules are given beside keys."""
    return {"lease_seconds": deps.settings.lease_seconds, "overdue_seconds": OVERDUE_SECONDS}


def _parts(keys: list[str]) -> Iterator[list[str]]:
    return (keys[start : start + PAGE] for start in range(0, len(keys), PAGE))
