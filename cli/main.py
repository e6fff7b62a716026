"""The command line: `moorage COMMAND`. What a command needs is loaded when it is called, so that help is quick."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any, Final

import click
from dotenv import dotenv_values

from moorage import VERSION, logs
from moorage.errors import MoorageError

# name: (module, one line of help), in the order of `moorage --help`
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "demo": ("demo", "Run the main job on embedded servers and compare what was sent with what was kept."),
    "up": ("up", "Run the whole stack here until Ctrl-C, and print its addresses."),
    "keep": ("keep", "Keep URLs, files or folders as one job, and show where they are."),
    "status": ("status", "Show on one screen what lives, what waits and what is broken."),
    "show": ("show", "Tell the whole story of a job, render, prediction, output or delivery."),
    "dead": ("dead", "List, show, replay or discard dead letters."),
    "recover": ("recover", "Find what a provider made, and register and poll what is missing."),
    "pause": ("pause", "Stop work on a provider, or all keeping; webhooks are still recorded."),
    "resume": ("pause", "End a pause: what waited is due at once."),
    "audit": ("audit", "Check the rules over PostgreSQL and storage."),
    "drill": ("drill", "Break everything while work runs, and account for everything that was sent."),
    "orphans": ("orphans", "List the objects that no row names, or delete them."),
    "retention": ("retention", "Count what is old enough to go, or let it go."),
    "doctor": ("doctor.command", "Check every setting and server, and say what to do."),
    "simulate": ("simulate", "Make a correctly signed webhook: print it as curl, or send it."),
    "token": ("token", "Make, list and revoke API tokens."),
    "openapi": ("openapi", "Print the API's description (OpenAPI 3.1)."),
    "migrate": ("processes", "Bring the database to the present schema."),
    "receiver": ("processes", "Serve webhooks and the API."),
    "worker": ("processes", "Work: celery -A worker worker with moorage's flags."),
    "beat": ("processes", "Tick: celery -A worker beat."),
    "flower": ("processes", "Watch: celery -A worker flower."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (the signature is click's)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 (click's)
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"cli.commands.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click's)
        """List the commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="moorage")
def cli() -> None:
    """Keep what image and video providers generate: webhooks in, files and rows out, provably."""
    logs.configure_logging(os.environ.get("LOG_LEVEL", "WARNING"), os.environ.get("LOG_FORMAT", "console"))


def _find_running_stack() -> None:
    """Use the stack that `moorage up` runs in this folder, unless the environment or .env names another."""
    running = Path(os.environ.get("MOORAGE_DATA_DIR", ".moorage"), "up.env")
    if "DATABASE_URL" in os.environ or "DATABASE_URL_FILE" in os.environ or not running.is_file():
        return
    if "DATABASE_URL" not in dotenv_values(os.environ.get("MOORAGE_DOTENV", ".env")):
        os.environ.update({name: value for name, value in dotenv_values(running).items() if value is not None})


def main(args: list[str] | None = None) -> Any:
    """Run the command line; what went wrong is one line on standard error, and the exit status is 1."""
    _find_running_stack()
    try:
        return cli.main(args, prog_name="moorage", standalone_mode=True)
    except MoorageError as error:
        click.echo(f"moorage: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
