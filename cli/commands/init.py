"""`moorage init`: write .env with generated secrets. `moorage env`: the settings of a stack. `moorage openapi`."""

import importlib
import os
import re
import secrets
import shlex
from pathlib import Path
from typing import Final

import click
from dotenv import dotenv_values

from moorage.errors import ConfigError
from worker.local_deployment import data_folder

TEMPLATE: Final = Path(__file__).parents[1] / "env.example"  # a link to .env.example
# Values that are generated, with the number of random bytes; only letters and digits, as they become parts of URLs.
SECRETS: Final = {
    "MOORAGE_API_TOKEN": 32,
    "FLOWER_PASSWORD": 24,
    "AWS_ACCESS_KEY_ID": 10,
    "AWS_SECRET_ACCESS_KEY": 24,
    "POSTGRES_PASSWORD": 24,
    "VALKEY_PASSWORD": 24,
}
_EMPTY: Final = re.compile(r"^([A-Z0-9_]+)=$", re.MULTILINE)


@click.command()
@click.option("--file", type=click.Path(path_type=Path), default=Path(".env"), show_default=True, help="File to write.")
def init(file: Path) -> None:
    """Write .env from .env.example with generated secrets, readable only by you. An existing file is not changed."""
    if not TEMPLATE.is_file():
        raise ConfigError(f"{TEMPLATE} does not exist: run moorage init in a checkout")
    template = TEMPLATE.read_text(encoding="utf-8")
    text = _EMPTY.sub(
        lambda line: line[0] + (secrets.token_hex(SECRETS[line[1]]) if line[1] in SECRETS else ""), template
    )
    try:
        with os.fdopen(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w", encoding="utf-8") as output:
            output.write(text)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}): nothing was changed") from error
    click.echo(f"wrote {file} with {len(SECRETS)} generated secrets")
    click.echo(f"set in it: PUBLIC_URL and S3_PUBLIC_ENDPOINT_URL (your host names), {', '.join(_EMPTY.findall(text))}")
    click.echo("then: docker compose up -d, and moorage doctor; the example has the settings for servers of your own")


@click.command()
def env() -> None:
    """
    Print the settings of the running `moorage up` as exports.

    Example: eval "$(moorage env)"
    """
    path = data_folder("up.env")
    if not path.is_file():
        raise ConfigError(f"no `moorage up` runs here: {path} does not exist")
    for name, value in dotenv_values(path, interpolate=False).items():
        click.echo(f"export {name}={shlex.quote(value or '')}")


@click.command()
def openapi() -> None:
    """Print the OpenAPI 3.1 document that GET /openapi.json returns."""
    # Imported by name: it loads the whole API.
    click.echo(importlib.import_module("web.openapi").document_json())
