"""`moorage openapi`: the API's description."""

import importlib

import click


@click.command()
def openapi() -> None:
    """Print the API's description: OpenAPI 3.1, as GET /openapi.json answers it."""
    # By name: the API stands above the commands, which must not import it.
    click.echo(importlib.import_module("web.openapi").document_json())
