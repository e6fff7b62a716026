"""The commands that become a process of moorage: receiver, worker, beat, flower; and migrate, which they wait for."""

import os
import sys

import click

from db import migrate as migrations
from db.connection import connect
from moorage import settings as settings_module
from worker.launch import granian_flags, worker_flags

_PASS = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@click.command()
def migrate() -> None:
    """Bring the database to the present schema; doing it twice, or twice at once, does nothing more."""
    conn = connect(settings_module.get_settings().database_url.get_secret_value(), name="moorage-migrate")
    applied = migrations.migrate(conn)
    conn.close()
    click.echo(f"applied: {', '.join(applied)}" if applied else "nothing to do: the schema is up to date")


@click.command(context_settings=_PASS)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on.")
def receiver(host: str, port: int) -> None:
    """Serve webhooks and the API with granian, one worker a process; scale by more processes."""
    settings_module.get_settings()  # a wrong setting is told here, in one line
    _become("granian", *granian_flags(host, port))


@click.command(context_settings=_PASS)
@click.argument("celery_args", nargs=-1, type=click.UNPROCESSED)
def worker(celery_args: tuple[str, ...]) -> None:
    """Work. Further arguments go to `celery worker`, for example -Q quick or -c 4."""
    settings_module.get_settings()
    _become("celery", *worker_flags(celery_args))


@click.command(context_settings=_PASS)
@click.argument("celery_args", nargs=-1, type=click.UNPROCESSED)
def beat(celery_args: tuple[str, ...]) -> None:
    """Tick. Any number of beats may run: each tick takes a slot in PostgreSQL."""
    settings_module.get_settings()
    _become("celery", "-A", "worker", "beat", *celery_args)


@click.command(context_settings=_PASS)
@click.argument("flower_args", nargs=-1, type=click.UNPROCESSED)
def flower(flower_args: tuple[str, ...]) -> None:
    """Watch. Set FLOWER_BASIC_AUTH=user:password to use its API."""
    settings_module.get_settings()
    _become("celery", "-A", "worker", "flower", *flower_args)


def _become(program: str, *args: str) -> None:
    """Replace this process, so that signals and the exit status are the program's own."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", program, *args])  # noqa: S606 (a shell is what we avoid)
