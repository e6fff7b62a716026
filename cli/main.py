"""Entry point of the command line. A command's module is imported when it is called, so that `--help` is fast."""

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

import click
from dotenv import dotenv_values

from moorage import VERSION, logs
from moorage.errors import MoorageError

# name: (module, one line of help), in the order of `moorage --help`
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "demo": ("demo", "Run the main scenarios on embedded servers and verify the results."),
    "up": ("up", "Run the complete stack locally until Ctrl-C."),
    "keep": ("keep", "Store URLs, files or folders as one job."),
    "init": ("init", "Write .env with generated secrets."),
    "status": ("status", "Show the state of rows, queues, workers, sweeps and storage."),
    "show": ("show", "Show the history and the next actions of one record."),
    "dead": ("dead", "List, show, replay or discard dead letters."),
    "recover": ("recover", "Register and poll predictions from a provider's list."),
    "pause": ("pause", "Pause a provider or all downloads; webhooks are still recorded."),
    "resume": ("pause", "End a pause."),
    "audit": ("audit", "Check PostgreSQL and storage for inconsistencies."),
    "drill": ("drill", "Inject faults under load and verify that nothing is lost."),
    "orphans": ("orphans", "List or delete objects that no row names."),
    "retention": ("retention", "Count or delete what exceeds its retention period."),
    "doctor": ("doctor.command", "Check settings and servers."),
    "simulate": ("simulate", "Print or send a correctly signed webhook."),
    "owner": ("owner", "Remove everything of an owner."),
    "token": ("token", "Create, list and revoke API tokens."),
    "openapi": ("openapi", "Print the OpenAPI document."),
    "migrate": ("processes", "Migrate the database to the current schema."),
    "receiver": ("processes", "Serve webhooks and the API."),
    "worker": ("processes", "Run a Celery worker."),
    "beat": ("processes", "Run Celery beat."),
    "flower": ("processes", "Run Flower."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (the signature is click's)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 (click's)
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"cli.commands.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click's)
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="moorage")
def cli() -> None:
    """Store what image and video providers generate: webhooks in, files and rows out."""
    logs.configure_logging(os.environ.get("LOG_LEVEL") or "WARNING", os.environ.get("LOG_FORMAT") or "console")


def _use_running_stack() -> None:
    """Use the settings of a stack that `moorage up` runs here, unless the environment or .env names another."""
    running = Path(os.environ.get("MOORAGE_DATA_DIR", ".moorage"), "up.env")
    if "DATABASE_URL" in os.environ or "DATABASE_URL_FILE" in os.environ or not running.is_file():
        return
    if "DATABASE_URL" not in dotenv_values(os.environ.get("MOORAGE_DOTENV", ".env")):
        os.environ.update({name: value for name, value in dotenv_values(running).items() if value is not None})


def main(args: list[str] | None = None) -> Any:
    """Run the command line; a MoorageError becomes one line on standard error and exit status 1."""
    _use_running_stack()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # of cli/start.py; from here on click handles Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return cli.main(args, prog_name="moorage", standalone_mode=True)
    except MoorageError as error:
        click.echo(f"moorage: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
