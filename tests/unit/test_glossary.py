"""The glossary of docs/design.md covers every table of the schema and every family of classes."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def glossary() -> dict[str, set[str]]:
    """Return the glossary's terms, each with the tables named beside it."""
    page = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    section = page.split("## Glossary")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| .+? \| (.*?) \|$", section, re.MULTILINE)[1:]
    terms: dict[str, set[str]] = {}
    for names, tables in rows:
        if not set(names) <= {"-", " "}:
            terms |= {name: set(re.findall(r"`(\w+)`", tables)) for name in names.split(", ")}
    return terms


def test_every_table_is_in_the_glossary() -> None:
    """A table whose term is not defined is the beginning of a second term."""
    schema = (ROOT / "schema.sql").read_text(encoding="utf-8")
    tables = set(re.findall(r"^CREATE TABLE (\w+)", schema, re.MULTILINE))

    assert set().union(*glossary().values()) == tables


def test_the_glossary_defines_every_term_once() -> None:
    """Two rows with one term would be two meanings."""
    page = (ROOT / "docs/design.md").read_text(encoding="utf-8").split("## Glossary")[1].split("\n## ")[0]
    terms = [name for row in re.findall(r"^\| ([a-z].+?) \| ", page, re.MULTILINE) for name in row.split(", ")]

    assert len(terms) == len(set(terms))


def classes_of(package: str) -> set[str]:
    """Return the public classes of a package."""
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {n.name for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")}
    return found
