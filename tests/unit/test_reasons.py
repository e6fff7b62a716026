"""No behaviour depends on the text of a reason: what a program decides by is a column, an enum or a type."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# `providers` reads the texts of other services, where the text is all there is.
PACKAGES = ("cli", "db", "egress", "media", "moorage", "receiver", "simulation", "storage", "tasks", "web", "worker")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

PROSE = {"reason", "why", "message", "cancel_reason"}
ERRORS = {"error", "exc", "exception"}
TEXT_METHODS = {"startswith", "endswith", "split", "rsplit", "partition", "rpartition", "removeprefix", "removesuffix",
                "find", "index", "count"}  # fmt: skip
PATTERN_FUNCTIONS = {"search", "match", "fullmatch", "findall", "finditer", "split"}
SQL = re.compile(
    r"""\b(?:reason|message)\b (?:\s*,\s*''\s*\))? \s+ (?:NOT\s+)? (?:I?LIKE|SIMILAR|~)
      | \b(?:starts_with|split_part|strpos|substring|position|regexp_\w+)
        \( [^()]* (?:coalesce\()? \b(?:reason|message)\b
      | \b(?:WHERE|AND|OR|WHEN|ON) \s+ (?:\w+\.)? reason \s* (?:=|<>) \s* '""",
    re.IGNORECASE | re.VERBOSE,
)

# What only shows a text, or reads one that a library has no other form of.
ALLOWED = {
    "simulation/demo/report.py: regexp_replace(reason": "groups what it shows",
    "tasks/sweeps/orphans.py: candidate.reason": "an enum",
    "media/images.py: str(error)": "Pillow gives the number of pixels in its message alone",
}


def is_prose(node: ast.expr) -> bool:
    """Return True if an expression holds the text of a reason or of an error."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.Subscript(slice=ast.Constant(value=name)):
            return name in PROSE
        case ast.Call(func=ast.Name(id="str"), args=[ast.Name(id=name)]):
            return name in ERRORS
        case ast.Call(func=ast.Attribute(value=value, attr="lower" | "strip" | "casefold")):
            return is_prose(value)
        case ast.BoolOp(values=values):
            return any(map(is_prose, values))
    return False


def decisions(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the texts that a program looks into."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in TEXT_METHODS and is_prose(value):
                yield value
            case ast.Call(func=ast.Attribute(attr=name), args=args) if name in PATTERN_FUNCTIONS:
                yield from filter(is_prose, args)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                for op, right in zip(ops, comparators, strict=True):
                    if isinstance(op, ast.In | ast.NotIn) and is_prose(right):
                        yield right
                    if isinstance(op, ast.Eq | ast.NotEq) and isinstance(right, ast.Constant) and is_prose(left):
                        yield left


def findings(text: str, name: str) -> list[str]:
    """Return where a source decides by the text of a reason."""
    tree = ast.parse(text)
    statements = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) is str)
    found = [ast.unparse(node) for node in decisions(tree)]
    found += [" ".join(match[0].split()) for statement in statements for match in SQL.finditer(statement)]
    return [f"{name}: {one}" for one in found]


def test_no_program_decides_by_the_text_of_a_reason() -> None:
    """A reworded message would change what happens."""
    found = [one for path in SOURCES for one in findings(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))]

    assert set(found) == set(ALLOWED)


@pytest.mark.parametrize(
    "source",
    [
        """x = row["reason"].startswith("submit uncertain: ")""",
        """x = (row["reason"] or "").split(":")""",
        """x = "expired" in (row["reason"] or "")""",
        """x = str(error).partition(": ")""",
        """x = re.search("expired", event.reason)""",
        """x = why == "cancelled" """,
        """X = "SELECT 1 FROM events e WHERE e.reason LIKE 'its process died%%'" """,
        """X = "SELECT 1 FROM events WHERE coalesce(reason, '') ILIKE 'x%'" """,
        """X = f"SELECT 1 FROM {t} WHERE substring(e.reason FROM 'lease (.*)') = 'x'" """,
        """X = "SELECT 1 FROM events WHERE starts_with(reason, 'x')" """,
        """X = "SELECT 1 FROM events WHERE reason = 'replayed'" """,
    ],
)
def test_what_decides_by_a_text_is_found(source: str) -> None:
    """A test that finds nothing proves nothing."""
    assert len(findings(source, "x.py")) == 1


@pytest.mark.parametrize(
    "source",
    [
        """x = message["type"] == "http.request" """,
        """x = reason is None or reason""",
        """x = f"{reason}; the rest" """,
        """x = len(why)""",
        """X = "UPDATE jobs SET reason = %(reason)s, category = NULL" """,
        """X = "SELECT reason FROM jobs WHERE owner LIKE 'a%'" """,
    ],
)
def test_what_only_passes_a_text_on_is_not_found(source: str) -> None:
    """Else the test would be switched off."""
    assert findings(source, "x.py") == []
