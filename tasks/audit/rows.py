"""The audit of rows: run the checks of db/audit/checks.py over pages of keys."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from db.audit import checks as rules
from db.audit.check import Check
from tasks.audit import documents
from tasks.audit.findings import Finding, Page
from tasks.step import Deps

PAGE: Final = 500
OVERDUE_SECONDS: Final = 900.0  # no row is this late while sweeps and workers run
DOCUMENT_CHECK: Final = Check(9, "projects", "document")


@dataclass(frozen=True, slots=True)
class RowScan:
    """The rows of a table, or the subjects of its events."""

    deps: Deps
    name: str
    deep: bool

    def check_page(self, after: str) -> Page:
        keys = self.deps.database.run(partial(rules.list_keys, scope=self.name, after=after, limit=PAGE))
        page = Page(after=keys[-1] if len(keys) == PAGE else None)
        page.checked["histories" if self.name.endswith("_events") else self.name] += len(keys)
        for check in self._checks() if keys else ():
            for finding in self._run_check(check, keys):
                page.add(finding)
        return page

    def recheck(self, findings: list[Finding]) -> list[Finding]:
        ids: dict[Check, dict[str, None]] = defaultdict(dict)  # without duplicates: a row may violate a rule twice
        for finding in findings:
            ids[finding.check][finding.id] = None
        chunks = ((check, list(keys)[i : i + PAGE]) for check, keys in ids.items() for i in range(0, len(keys), PAGE))
        return [finding for check, chunk in chunks for finding in self._run_check(check, chunk)]

    def _checks(self) -> list[Check]:
        return rules.list_checks(self.name, deep=self.deep) + ([DOCUMENT_CHECK] if self.name == "projects" else [])

    def _run_check(self, check: Check, keys: Sequence[str]) -> Iterable[Finding]:
        if check == DOCUMENT_CHECK:
            return documents.check_documents(self.deps, keys, check)
        parameters = {"lease_seconds": self.deps.settings.lease_seconds, "overdue_seconds": OVERDUE_SECONDS}
        rows = self.deps.database.run(lambda conn: rules.find_violations(conn, check, keys, parameters))
        return (Finding(check.rule, row["subject"], row["id"], row["what"], check) for row in rows)
