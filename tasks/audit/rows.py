"""The audit of rows: run the checks of db/audit/checks.py over pages of keys, and compare documents with placements."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from db import placements, projects
from db.audit import checks as rules
from db.audit.check import Check
from db.connection import Connection
from moorage import scene_documents
from moorage.model import ProjectKey
from tasks.audit.findings import Finding, Tally
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

    def check_page(self, tally: Tally, after: str) -> str | None:
        keys = self.deps.database.run(partial(rules.list_keys, scope=self.name, after=after, limit=PAGE))
        tally.checked["histories" if self.name.endswith("_events") else self.name] += len(keys)
        checks = rules.list_checks(self.name, deep=self.deep) + ([DOCUMENT_CHECK] if self.name == "projects" else [])
        for check in checks if keys else ():
            for finding in self._run_check(check, keys):
                tally.add(finding)
        return keys[-1] if len(keys) == PAGE else None

    def recheck(self, findings: list[Finding]) -> list[Finding]:
        ids: dict[Check, dict[str, None]] = defaultdict(dict)  # without duplicates: a row may violate a rule twice
        for finding in findings:
            ids[finding.check][finding.id] = None
        chunks = ((check, list(keys)[i : i + PAGE]) for check, keys in ids.items() for i in range(0, len(keys), PAGE))
        return [finding for check, chunk in chunks for finding in self._run_check(check, chunk)]

    def _run_check(self, check: Check, keys: Sequence[str]) -> Iterator[Finding]:
        run = self.deps.database.run
        if check == DOCUMENT_CHECK:
            for key in keys:
                problems = run(partial(_check_document, key=ProjectKey.parse(key), asset_base=self.deps.asset_base))
                yield from (Finding(check.rule, "project", key, problem, check) for problem in problems)
        else:
            parameters = {"lease_seconds": self.deps.settings.lease_seconds, "overdue_seconds": OVERDUE_SECONDS}
            for row in run(lambda conn: rules.find_violations(conn, check, keys, parameters)):
                yield Finding(check.rule, row["subject"], row["id"], row["what"], check)


def _check_document(conn: Connection, key: ProjectKey, asset_base: str) -> list[str]:
    """Compare a project's `imageUrls` and scene keys with those computed from its placements."""
    project = projects.get(conn, key)
    if project is None:
        return []
    placed = placements.list_placements(conn, key)
    scene_keys = scene_documents.find_scene_keys(project["document"], (row["scene"] for row in placed))
    pairs = list(zip(placed, scene_keys, strict=True))
    problems = [
        f"file {row['idx']} of render {row['render_id']} is placed in {row['scene_key'] or 'no scene'}, "
        f"but belongs in {scene_key or 'none'}"
        for row, scene_key in pairs
        if row["scene_key"] != scene_key
    ]
    urls = placements.group_urls_by_scene(pairs, asset_base)
    if scene_documents.replace_image_urls(project["document"], urls) != project["document"]:
        problems.append("imageUrls of its document do not match its placements")
    return problems
