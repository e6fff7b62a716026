"""`moorage token`: a token is shown once and stands nowhere, and ends when it is revoked."""

import json
from uuid import UUID

import pytest

from db import api_tokens
from db.connection import Connection
from embedded.stack import Stack
from tests.integration import command_line as cli


def test_a_token_is_shown_once_and_ends(stack: Stack, database_url: str, conn: Connection) -> None:
    """Whoever reads the database, a backup or the list must not be able to use the API."""
    env = cli.environment(stack, database_url)

    made = cli.run(env, "token", "create", "shop", "--level", "admin")
    token = made.stdout.strip()
    role = api_tokens.get_active(conn, token)
    listed = cli.run(env, "token", "list")
    row = json.loads(cli.run(env, "token", "list", "--json").stdout)["tokens"][0]
    revoked = cli.run(env, "token", "revoke", row["id"])
    again = cli.run(env, "token", "revoke", row["id"])

    assert made.returncode == listed.returncode == revoked.returncode == 0, made.stderr + listed.stderr
    assert role == {"id": UUID(row["id"]), "name": "shop", "role": "admin"}
    assert api_tokens.get_active(conn, token) is None
    assert "shop" in listed.stdout
    assert token not in listed.stdout + json.dumps(row)
    assert token not in str(conn.execute("SELECT * FROM api_tokens").fetchall())
    assert (again.returncode, "no active token" in again.stderr) == (1, True)


@pytest.mark.parametrize(
    "args", [("create", " "), ("create", "x" * 201), ("revoke", "shop"), ("create", "x", "--role", "owner")]
)
def test_what_makes_no_sense_is_told(stack: Stack, database_url: str, args: tuple[str, ...]) -> None:
    """In a line or two, and with a status that a script sees."""
    done = cli.run(cli.environment(stack, database_url), "token", *args)

    assert done.returncode != 0
    assert "Traceback" not in done.stderr
