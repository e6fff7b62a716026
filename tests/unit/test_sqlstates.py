"""The table of SQLSTATEs: the page says what the code does."""

import re
from pathlib import Path

import psycopg
import pytest

from db import sqlstates
from moorage.errors import DatabaseUnavailable

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/errors.md"


def test_the_page_has_the_table_of_the_code():
    """An operator looks up the code that a reason names."""
    section = PAGE.read_text(encoding="utf-8").split("## PostgreSQL: SQLSTATE")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \| [^|]+ \| (.+?) \|$", section, re.MULTILINE)
    listed = {code: said.strip("`") for codes, said in rows for code in re.findall(r"`(\w+)`", codes)}

    repeated = {code: listed.pop(code, "") for code in sqlstates.REPEATED}

    assert listed == {code: kind.__name__ for code, kind in sqlstates.ERROR_TYPES.items()}
    assert all("repeated" in said for said in repeated.values())


@pytest.mark.parametrize("code", sorted({*sqlstates.ERROR_TYPES, "53100", "53300", "57P01", "57P03", "08006"}))
def test_a_listed_code_is_about_the_server(code):
    """A class covers its codes."""
    error = psycopg.errors.lookup(code) if len(code) == 5 else psycopg.errors.lookup(f"{code}000")

    translated = sqlstates.translate(error("refused"))

    assert type(translated) is (sqlstates.ERROR_TYPES.get(code) or sqlstates.ERROR_TYPES[code[:2]])
    assert translated.is_internal


@pytest.mark.parametrize("code", ["23505", "22012", "42P01", "42703", "54000", "55000", "0B000", "XX000", "25P02"])
def test_any_other_code_is_an_error_of_ours(code):
    """It is counted, and ends as INTERNAL."""
    assert sqlstates.translate(psycopg.errors.lookup(code)("wrong")) is None


def test_an_error_without_a_code_is_a_lost_connection():
    """libpq reports it, no server."""
    assert "lost" in str(sqlstates.translate(psycopg.OperationalError("server closed the connection")))
    assert sqlstates.translate(psycopg.ProgrammingError("no results to fetch")) is None
    assert sqlstates.translate(TypeError("ours")) is None


@pytest.mark.parametrize("text", ["lost synchronization with server", "cannot allocate memory for input buffer"])
def test_an_error_of_libpq_is_a_lost_connection(text: str) -> None:
    """psycopg raises it as a plain DatabaseError. One of its own, such as a value it cannot adapt, is a bug."""
    assert isinstance(sqlstates.translate(psycopg.DatabaseError(text)), DatabaseUnavailable)
    assert sqlstates.translate(psycopg.DataError("integer out of range")) is None
    assert sqlstates.translate(psycopg.ProgrammingError("no placeholder")) is None
