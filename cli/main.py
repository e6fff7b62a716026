"""Entry point of the command line. A command's module is imported when it is called, so that `--help` is fast."""

import importlib
import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

import click
from click.exceptions import NoSuchCommand
from dotenv import dotenv_values

from moorage import VERSION, logs
from moorage.errors import MoorageError
from moorage.text import escape_control_chars

# name: module (imported only when the command is called), line of help, example; in the order of `moorage --help`
GROUPS: Final[dict[str, dict[str, tuple[str, str, str]]]] = {
    "Try it": {
        "demo": ("demo", "Run the main scenarios on embedded servers and verify the results.", "demo"),
        "up": ("up", "Run the complete stack locally until Ctrl-C.", "up --pictures my-pictures/"),
        "env": ("init", "Print the settings of the running stack for a shell.", "env"),
        "keep": ("keep", "Store URLs, files or folders as one job.", "keep my-pictures/ --owner me"),
        "simulate": ("simulate", "Print or send a correctly signed webhook.", "simulate replicate --send"),
    },
    "See what happens": {
        "status": ("status", "Show a verdict, then rows, queues, workers and sweeps.", "status --watch"),
        "show": ("show", "Show the history and the next actions of one record.", "show 01a226e7-b44a"),
        "list": ("list_rows", "List jobs, deliveries, predictions, outputs, ...", "list outputs --state waiting"),
        "doctor": ("doctor.command", "Check settings and servers.", "doctor"),
        "audit": ("audit", "Check PostgreSQL and storage for inconsistencies.", "audit --sample 500"),
    },
    "Act": {
        "dead": ("dead", "List, show, replay or discard dead letters.", "dead replay --provider fal"),
        "job": ("job", "Cancel or retry a job.", "job retry 01a226e7-b44a"),
        "pause": ("pause", "Pause a provider or all downloads; webhooks are still recorded.", "pause fal"),
        "resume": ("pause", "End a pause.", "resume fal"),
        "recover": ("recover", "Register and poll predictions from a provider's list.", "recover replicate --dry-run"),
        "orphans": ("cleanup", "List or delete objects that no row names.", "orphans --delete"),
        "retention": ("cleanup", "Count or delete what exceeds its retention period.", "retention --apply"),
        "owner": ("cleanup", "Remove everything of an owner.", "owner erase ada"),
        "drill": ("drill", "Inject faults under load and verify that nothing is lost.", "drill --minutes 2"),
    },
    "Set up and run": {
        "providers": ("providers", "List providers, or show what a payload would do.", "providers list"),
        "init": ("init", "Write .env with generated secrets.", "init"),
        "token": ("token", "Create, list and revoke API tokens.", "token create website"),
        "openapi": ("init", "Print the OpenAPI document.", "openapi > openapi.json"),
        "migrate": ("processes", "Migrate the database to the current schema.", "migrate"),
        "receiver": ("processes", "Serve webhooks and the API.", "receiver --port 8000"),
        "worker": ("processes", "Run a Celery worker.", "worker -Q keep -c 4"),
        "beat": ("processes", "Run Celery beat.", "beat"),
        "flower": ("processes", "Run Flower.", "flower --port=5555"),
    },
}
COMMANDS: Final = {name: command for group in GROUPS.values() for name, command in group.items()}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (the signature is click's)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 (click's)
        if cmd_name not in COMMANDS:
            return None
        module, _, example = COMMANDS[cmd_name]
        attribute = "list_rows" if cmd_name == "list" else cmd_name
        command: click.Command = getattr(importlib.import_module(f"cli.commands.{module}"), attribute)
        line = f"Example: moorage {example}"
        if line not in (command.epilog or ""):
            command.epilog = f"{command.epilog}\n\n{line}" if command.epilog else line
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not ctx.resilient_parsing:
            raise NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click's)
        for title, commands in GROUPS.items():
            with formatter.section(title):
                lines = [((name, text), ("", f"$ moorage {example}")) for name, (_, text, example) in commands.items()]
                formatter.write_dl([*itertools.chain(*lines)])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="moorage")
def cli() -> None:
    """Store what image and video providers generate: webhooks in, files and rows out."""
    logs.configure_logging(os.environ.get("LOG_LEVEL") or "WARNING", os.environ.get("LOG_FORMAT") or "console")


def _use_running_stack() -> None:
    """Use the settings of a stack that `moorage up` runs here, unless the environment or .env names another."""
    running = Path(os.environ.get("MOORAGE_DATA_DIR", ".moorage"), "up.env")
    if not running.is_file():
        return
    given = {*os.environ, *dotenv_values(os.environ.get("MOORAGE_DOTENV", ".env"))}
    if not given & {"DATABASE_URL", "DATABASE_URL_FILE"}:
        os.environ.update({name: value or "" for name, value in dotenv_values(running, interpolate=False).items()})


def main(args: list[str] | None = None) -> Any:
    """Run the command line; a MoorageError becomes one line on standard error and exit status 1."""
    if not {"up", "demo", "drill"} & {*(sys.argv[1:] if args is None else args)[:1]}:  # with a stack of their own
        _use_running_stack()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # of cli/start.py; from here on click handles Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return cli.main(args, prog_name="moorage", standalone_mode=True)
    except MoorageError as error:
        click.echo("\n".join(map(escape_control_chars, f"moorage: {error}".split("\n"))), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
