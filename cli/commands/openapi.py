"""`moorage openapi`: print the OpenAPI document."""

import importlib

import click


@click.command()
def openapi() -> None:
    """Print the OpenAPI 3.1 document that GET /openapi.json returns."""
    # Imported by name: it loads the whole API.
    click.echo(importlib.import_module("web.openapi").document_json())
