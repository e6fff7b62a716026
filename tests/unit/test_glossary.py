"""The glossary of docs/design.md covers every table of the schema and every family of classes."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("cli", "db", "egress", "media", "moorage", "providers", "receiver", "storage", "tasks", "web", "worker")


def glossary() -> dict[str, set[str]]:
    """Return the glossary's terms, each with the tables named beside it."""
    page = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    section = page.split("## Glossary")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+?) \| [^|]+? \| ?([^|]*?) ?\|$", section, re.MULTILINE)[1:]
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


def class_families() -> dict[str, list[str]]:
    """Return the public classes of the product that are no errors, by the last word of their names."""
    families: dict[str, list[str]] = {}
    errors = {"Exception"}
    nodes = [
        node
        for package in PRODUCT
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    ]
    for _ in range(4):  # deeper than any base class
        errors |= {node.name for node in nodes if {ast.unparse(base).split(".")[-1] for base in node.bases} & errors}
    for node in nodes:
        is_provider = any(ast.unparse(base).split(".")[-1] == "Provider" for base in node.bases)  # named for a service
        if node.name not in errors and not node.name.startswith("_") and not is_provider:
            word = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]+", node.name)[-1]
            families.setdefault(word.lower(), []).append(node.name)
    return families


def test_every_family_of_classes_is_in_the_glossary() -> None:
    """A class is named for a term of the domain, or for a technical noun that the page lists."""
    page = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    listed = page.split("Class names end with one of these terms, or with a technical noun:")[1].split("\n\n")[0]
    nouns = set(re.findall(r"[a-z]+", listed))
    terms = {word for term in glossary() for word in term.split()}

    families = class_families()

    assert {word: names for word, names in families.items() if word not in nouns | terms} == {}
    assert sorted(nouns - set(families)) == [], "listed, but no class has it"
