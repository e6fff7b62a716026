"""The documentation says what the code does: settings, commands, states and tables are compared, links are followed."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic_settings import BaseSettings

from cli import main
from moorage import settings, settings_sources, transitions
from moorage.settings import Constants, Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SETTING_ROW = re.compile(r"^\| `([A-Z][A-Z0-9_]+)` \| (required|none|`[^|]*`) \|", re.MULTILINE)
# What compose reads from .env for itself.
OF_COMPOSE = {
    "FLOWER_PASSWORD",
    "POSTGRES_PASSWORD",
    "VALKEY_PASSWORD",
    "WORKER_QUICK_CONCURRENCY",
    "WORKER_KEEP_CONCURRENCY",
    "POSTGRES_MEMORY",
    "WORKER_KEEP_MEMORY",
    "IMAGE_TAG",
}
# Filled in there, so that compose can be tried on one's own machine.
FILLED_IN = {"S3_PUBLIC_ENDPOINT_URL"}
REQUIRED = {"DATABASE_URL", "CELERY_BROKER_URL"}


def defaults(kind: type[BaseSettings] = Settings) -> dict[str, str]:
    """Return every field's preferred name in the environment and its default as the tables show it."""
    return {
        settings_sources.names_of(field, info)[0]: _shown(info.get_default(), is_required=info.is_required())
        for field, info in kind.model_fields.items()
    }


def _shown(value: Any, *, is_required: bool) -> str:
    if is_required:
        return "required"
    if value is None or value in ((), {}):
        return "none"
    return f"`{_written(value)}`"


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, dict):
        return ",".join(f"{name}={number:g}" for name, number in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_the_settings_table_has_every_setting_with_its_default():
    """An undocumented setting is never used; a wrong default is worse than none."""
    text = (ROOT / "docs/reference/settings.md").read_text(encoding="utf-8").split("## Read by other programs")[0]

    assert dict(SETTING_ROW.findall(text)) == defaults()


def test_the_table_of_developer_overrides_holds_every_constant_with_its_default():
    """A test that needs a shorter wait must find the name of its override."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

    assert dict(SETTING_ROW.findall(page)) == defaults(Constants)


def test_the_example_environment_holds_every_setting_with_its_default():
    """It is copied to .env: what is missing there is not known to exist, what is too much is refused at the start."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    pairs = [line.removeprefix("#").split("=", 1) for line in lines if re.match(r"#?[A-Z][A-Z0-9_]+=", line)]
    written = dict(pairs)
    expected = {name: "" if value == "none" else value.strip("`") for name, value in defaults().items()}

    assert len(pairs) == len(written), "a name stands twice"
    assert set(written) == set(expected) | OF_COMPOSE
    differing = {name for name, value in expected.items() if written[name] != value}
    assert differing == FILLED_IN | REQUIRED


def test_the_example_environment_holds_no_secret():
    """Whoever forgets to fill one in must be stopped by its absence."""
    secret = re.compile(r"^#?\w*(SECRET|TOKEN|PASSWORD|KEY_ID|ACCESS_KEY)=(.+)$", re.MULTILINE)

    assert secret.findall((ROOT / ".env.example").read_text(encoding="utf-8")) == []


def test_the_readme_is_short():
    """At most 150 lines and 1,300 words: what it is, how to try it, what it guarantees, links for the rest."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1300


@pytest.mark.parametrize("command", sorted(main.COMMANDS))
def test_every_command_is_in_the_readme_and_in_the_reference(command):
    """`moorage --help` may not know more than the documentation."""
    for page in ("README.md", "docs/reference/command-line.md"):
        words = re.findall(r"`(?:moorage )?([a-z]+)\b", (ROOT / page).read_text(encoding="utf-8"))

        assert command in words, page


def test_the_states_page_holds_exactly_the_edges_of_the_code():
    """The page is what an operator reads an event's from and to against."""
    text = (ROOT / "docs/reference/states.md").read_text(encoding="utf-8")
    sections = {part.split("\n", 1)[0].split(":")[0]: part for part in text.split("\n## ")[1:]}

    written = {name.lower().replace(" ", "_"): _edges(part) for name, part in sections.items()}

    assert written == dict(transitions.TRANSITIONS)


def _edges(section: str) -> frozenset[tuple[str | None, str]]:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", section, re.MULTILINE)
    begins = re.findall(r"^Begins as (.*)\.$", section, re.MULTILINE)
    taken = {(state, to) for state, targets in rows for to in re.findall(r"`(\w+)`", targets)}
    return frozenset(taken | {(None, state) for state in re.findall(r"`(\w+)`", " ".join(begins))})


def test_every_table_is_in_the_reference():
    """A new table without a line there has no reader."""
    schema = (ROOT / "schema.sql").read_text(encoding="utf-8")
    page = (ROOT / "docs/reference/database.md").read_text(encoding="utf-8")

    tables = re.findall(r"^CREATE TABLE (\w+)", schema, re.MULTILINE)

    assert [name for name in tables if f"| `{name}` |" not in page] == []


def test_the_reference_names_each_migration_that_builds_indexes():
    """Writing to a table is blocked meanwhile; an operator plans for it."""
    page = (ROOT / "docs/reference/database.md").read_text(encoding="utf-8")
    files = sorted((ROOT / "db/migrations").glob("*.sql"))
    building = [int(file.name[:4]) for file in files if re.search(r"CREATE (UNIQUE )?INDEX", file.read_text("utf-8"))]

    (named,) = re.findall(r"Versions ([\d, and]+) build indexes", page)

    assert [int(number) for number in re.findall(r"\d+", named)] == building


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_inside_the_project_leads_somewhere(page):
    """A dead link at 3 a.m. costs more than no link."""
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))

    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_setting_that_a_page_names_exists(page):
    """A renamed setting leaves its old name in prose, where no table finds it."""
    known = {name for choices in settings.env_names_by_field().values() for name in choices} | {
        "MOORAGE_FAILPOINT",
        "MOORAGE_DOTENV",
        "MOORAGE_DATA_DIR",
        "MOORAGE_DEV",
        *defaults(Constants),
    }
    named = set(re.findall(r"\bMOORAGE_[A-Z][A-Z0-9_]+[A-Z0-9]\b", page.read_text(encoding="utf-8")))
    examples = {"MOORAGE_LEASE_SECOND"}  # the misspelling that the settings page shows the answer to

    assert named - known - examples == set()
