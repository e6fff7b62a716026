"""Conventions of CONTRIBUTING.md that a linter does not know: sizes, words, names."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from db import migrate

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("cli", "db", "egress", "media", "moorage", "providers", "receiver", "storage", "tasks", "web", "worker")
CODE = (*PRODUCT, "embedded", "simulation")
MAX_FUNCTION_LINES = 50
MAX_FILE_LINES = 300

# Words that personify programs or rows; "unavailable", "reported", "requested", "again" are the field's terms.
WORDING = re.compile(r"\b(told|tell|wish|wished|nobody|whoever|asked|anew|went away|is away)\b", re.IGNORECASE)
MAX_WORDING_LINES = 19

# Names that several modules of a package share: the module gives the object, the verb means the same in each.
SHARED_NAMES = {
    "db": {
        "abandon": "stop waiting for a prediction; a late success still counts",
        "add": "INSERT one row",
        "build_end": "the arguments of END for several rows",
        "claim": "lease a due row",
        "dead_letter": "end a leased row and insert its dead letter",
        "end": "move a row to a terminal state",
        "find": "SELECT rows by what names them elsewhere",
        "get": "SELECT one row by id",
        "list_by_job": "SELECT the rows of a job",
        "list_page": "SELECT one page, newest first",
        "lock": "SELECT one row by id FOR UPDATE",
        "make_due": "set run_at of waiting rows to now",
        "postpone": "move run_at of a waiting row",
        "queue_add": "INSERT rows together with the next statement",
        "queue_lock": "lock several rows, but none that is locked, together with the next statement",
        "replay": "make a dead row live again",
    },
    "tasks": {"run": "carry out one step under its lease"},
}


def python_files(*packages: str) -> list[Path]:
    """Return the files of the packages, from the root on."""
    return sorted(path.relative_to(ROOT) for package in packages for path in (ROOT / package).rglob("*.py"))


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return all functions and methods of a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_no_function_is_longer_than_a_screen() -> None:
    """At most 50 lines: it can be read without scrolling."""
    sizes = {
        f"{path}:{function.name}": (function.end_lineno or 0) - function.lineno + 1
        for path in python_files(*CODE)
        for function in functions(path)
    }

    assert {name: size for name, size in sizes.items() if size > MAX_FUNCTION_LINES} == {}


def test_no_file_has_two_subjects() -> None:
    """More than 300 lines are more than one subject."""
    sizes = {str(path): (ROOT / path).read_text(encoding="utf-8").count("\n") for path in python_files(*CODE)}

    assert {name: size for name, size in sizes.items() if size > MAX_FILE_LINES} == {}


def test_the_product_speaks_plain_english() -> None:
    """Code, comments and messages use the field's terms."""
    lines = [
        f"{path}:{number}: {line.strip()}"
        for path in python_files(*PRODUCT, "embedded")
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1)
        if WORDING.search(line)
    ]

    assert len(lines) <= MAX_WORDING_LINES, "\n".join(lines)


@pytest.mark.parametrize("package", PRODUCT)
def test_functions_of_a_package_share_a_name_only_for_one_meaning(package: str) -> None:
    """`show`, `read` or `of` in ten modules says nothing where it is called."""
    modules = defaultdict(list)
    for path in python_files(package):
        for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                modules[node.name].append(str(path))

    shared = {name for name, paths in modules.items() if len(paths) > 1}

    assert shared == set(SHARED_NAMES.get(package, {}))


def test_migrations_have_consecutive_numbers() -> None:
    """Two branches that each add the next number merge without a conflict, and one of the files would never run."""
    numbers = [int(path.name[:4]) for path in sorted((ROOT / "db/migrations").glob("*.sql"))]

    assert numbers == list(range(2, migrate.SCHEMA_VERSION + 1))
