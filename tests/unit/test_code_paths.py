"""The file lists in docs/design.md name the files that a webhook and a job request really pass through."""

import ast
import re
from pathlib import Path

import pytest

from worker import queues

ROOT = Path(__file__).resolve().parents[2]
MAX_FILES_OF_A_JOB_REQUEST = 12
ENTRY = re.compile(r"^\d+\. `([\w/]+\.py)`(?: \(wake `(\w+)`\))?: ", re.MULTILINE)


def read_paths() -> dict[str, list[tuple[str, str]]]:
    """Return the files of each path with the wake that starts them ("" without), by its subject."""
    sections = (ROOT / "docs/design.md").read_text(encoding="utf-8").split("\n### File by file: ")[1:]
    return {section.splitlines()[0]: ENTRY.findall(section.split("\n## ")[0]) for section in sections}


def imported_files(path: str) -> set[str]:
    """Return the files of this repository that a file imports, also inside of functions."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    candidates = {name.replace(".", "/") for name in names}
    files = {f"{name}.py" for name in candidates} | {f"{name}/__init__.py" for name in candidates}
    return {name for name in files if (ROOT / name).exists()}


def is_reached(path: str, earlier: list[str]) -> bool:
    """Return True if an earlier file imports it. A provider is loaded by name: by the package that others import."""
    imported = {name for source in earlier for name in imported_files(source)}
    if path.startswith("providers/") and imported & {"providers/__init__.py", "providers/base.py"}:
        return path in imported_files("providers/__init__.py")
    return path in imported


@pytest.mark.parametrize("subject", ["a webhook", "a job request"])
def test_every_file_is_imported_by_an_earlier_one(subject: str) -> None:
    """A list that is not compared with the code is wrong after the next change."""
    entries = read_paths()[subject]

    unreached = [
        path
        for index, (path, wake) in enumerate(entries)
        if index and not wake and not is_reached(path, [earlier for earlier, _ in entries[:index]])
    ]

    assert len(entries) > 10
    assert [path for path, _ in entries if not (ROOT / path).is_file()] == []
    assert unreached == []


@pytest.mark.parametrize("subject", ["a webhook", "a job request"])
def test_every_wake_is_a_step_that_a_worker_runs(subject: str) -> None:
    """Between processes a wake replaces the import: the worker loads the file of the step."""
    entries = [entry for entry in read_paths()[subject] if entry[1]]
    loaded = {"worker/celery_tasks.py"} | imported_files("worker/step_runner.py")

    assert {wake for _, wake in entries} <= set(queues.TASK_BY_STEP)
    assert {path for path, _ in entries} <= loaded
    assert entries[0][0] == "worker/celery_tasks.py"


def test_a_job_request_passes_through_few_files() -> None:
    """A change of the request should be understood by reading a dozen files."""
    assert len(read_paths()["a job request"]) <= MAX_FILES_OF_A_JOB_REQUEST
