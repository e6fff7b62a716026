"""`moorage token`: API tokens for applications and for people, beside MOORAGE_API_TOKEN."""

from functools import partial
from uuid import UUID

import click

from cli import console
from db import api_tokens
from db.api_tokens import Role
from db.connection import Database, current_time
from moorage import settings as settings_module
from moorage.errors import ConfigError
from moorage.text import is_storable

MAX_NAME = 200


@click.group()
def token() -> None:
    """
    Make, list and revoke API tokens.

    They are stored as hashes: a token is shown once. An application's sees everybody's rows; an admin's makes and
    revokes tokens too. Tokens for browsers are made by applications: POST /v1/owner-tokens.
    """


@token.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["application", "admin"]), default="application", show_default=True)
@console.json_option
def create(name: str, role: Role, as_json: bool) -> None:
    """Make a token and print it, this once."""
    if not name.strip() or len(name) > MAX_NAME or not is_storable(name):
        raise ConfigError(f"NAME: write 1 to {MAX_NAME} characters that say whose it is")
    row, made = _database().run(partial(api_tokens.create, name=name, role=role))
    if as_json:
        console.print_json({**row, "token": made})
        return
    click.echo(made)
    click.echo(
        f"token {row['id']} of {console.escape_control_chars(name)}, role {role}: it is not shown again", err=True
    )


@token.command("list")
@console.json_option
def list_(as_json: bool) -> None:
    """List the tokens that were made, the revoked too."""
    database = _database()
    rows, at = database.run(api_tokens.list_tokens), database.run(current_time)
    if as_json:
        console.print_json({"tokens": rows})
        return
    columns = ("id", "name", "role", "made", "revoked")
    cells = [
        (
            row["id"],
            row["name"],
            row["role"],
            console.format_age(row["created_at"], at),
            console.format_age(row["revoked_at"], at) if row["revoked_at"] else "",
        )
        for row in rows
    ]
    console.print_parts(console.build_table("API tokens", columns, cells) if rows else "no token was made")


@token.command()
@click.argument("token_id", metavar="ID", type=click.UUID)
@console.json_option
def revoke(token_id: UUID, as_json: bool) -> None:
    """End a token: its next request is refused, and so are open streams within five minutes."""
    row = _database().run(partial(api_tokens.revoke, token_id=token_id))
    if row is None:
        raise ConfigError(f"there is no token {token_id} that lives: see moorage token list")
    if as_json:
        console.print_json(row)
        return
    click.echo(f"{console.escape_control_chars(row['name'])} is revoked")


def _database() -> Database:
    return Database(settings_module.get_settings().database_url.get_secret_value(), name="moorage-token")
