"""`moorage token`: API tokens for applications and operators, in addition to MOORAGE_API_TOKEN."""

from functools import partial
from typing import get_args
from uuid import UUID

import click

from cli import console
from db import api_tokens
from db.api_tokens import Role
from db.connection import Database, current_time
from moorage import settings as settings_module
from moorage.errors import ConfigError
from moorage.text import is_storable

MAX_NAME_CHARS = 200


@click.group()
def token() -> None:
    """
    Create, list and revoke API tokens.

    Only hashes are stored: a token is printed once. The level `application` has access to the rows of all owners;
    `viewer` reads what operators read and changes nothing; `admin` acts as an operator, and creates and revokes tokens.
    Applications create tokens for browsers with POST /v1/owner-tokens.
    """


@token.command("create")
@click.argument("name")
@click.option("--level", "--role", "role", type=click.Choice(get_args(Role)), default="application", show_default=True)
@console.json_option
def create_token(name: str, role: Role) -> console.Output:
    """Create a token and print it. It cannot be shown again."""
    if not name.strip() or len(name) > MAX_NAME_CHARS or not is_storable(name):
        raise ConfigError(f"NAME must have 1 to {MAX_NAME_CHARS} characters")
    row, secret = _database().run(partial(api_tokens.create, name=name, role=role))
    shown = console.escape_control_chars(name)
    click.echo(f"token {row['id']} of {shown}, role {role}: it is not shown again", err=True)
    return {**row, "token": secret}, [secret]


@token.command("list")
@console.json_option
def list_tokens() -> console.Output:
    """List all tokens, including revoked ones."""
    database = _database()
    rows, now = database.run(api_tokens.list_tokens), database.run(current_time)
    created = ("created", lambda row: console.format_age(row["created_at"], now))
    revoked = ("revoked", lambda row: console.format_age(row["revoked_at"], now) if row["revoked_at"] else "")
    tables = console.build_tables("API tokens", rows, "id", "name", "role", created, revoked)
    return {"tokens": rows}, tables or ["no tokens"]


@token.command("revoke")
@click.argument("token_id", metavar="ID", type=click.UUID)
@console.json_option
def revoke_token(token_id: UUID) -> console.Output:
    """Revoke a token. Its requests are refused immediately; its open streams end within seconds."""
    row = _database().run(partial(api_tokens.revoke, token_id=token_id))
    if row is None:
        raise ConfigError(f"no active token {token_id}: see moorage token list")
    return row, [f"{row['name']} is revoked"]


def _database() -> Database:
    return Database(settings_module.get_settings().database_url.get_secret_value(), name="moorage-token")
