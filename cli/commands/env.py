"""`moorage env`: the settings of the stack that `moorage up` runs, for a shell."""

import shlex

import click
from dotenv import dotenv_values

from moorage.errors import ConfigError
from simulation.stack import data_folder


@click.command()
def env() -> None:
    """
    Print the settings of the running `moorage up` as exports.

    Example: eval "$(moorage env)"
    """
    path = data_folder("up.env")
    if not path.is_file():
        raise ConfigError(f"no `moorage up` runs here: {path} does not exist")
    for name, value in dotenv_values(path).items():
        click.echo(f"export {name}={shlex.quote(value or '')}")
