"""The commands that run a process of moorage (receiver, worker, beat, flower), and `moorage migrate`."""

import os
import sys

import click
import psycopg

from db import migrate as migrations
from db import sqlstates
from db.connection import connect
from moorage import settings as settings_module
from worker.launch import granian_flags, worker_flags

_PASS = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@click.command()
def migrate() -> None:
    """Migrate the database to the current schema. Repeated and concurrent runs are safe."""
    conn = connect(settings_module.get_settings().database_url.get_secret_value(), name="moorage-migrate")
    try:
        applied = migrations.migrate(conn)
    except psycopg.Error as error:
        if (refusal := sqlstates.translate(error)) is not None:
            raise refusal from error
        raise
    finally:
        conn.close()
    click.echo(f"applied: {', '.join(applied)}" if applied else "nothing to do: the schema is up to date")


@click.command(context_settings=_PASS)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on.")
def receiver(host: str, port: int) -> None:
    """Serve webhooks and the API with granian, with one worker per process; scale by more processes."""
    settings = settings_module.get_settings()  # reports an invalid setting in one line
    _exec("granian", *granian_flags(host, port, max_streams=settings.max_streams))


@click.command(context_settings=_PASS)
@click.argument("celery_args", nargs=-1, type=click.UNPROCESSED)
def worker(celery_args: tuple[str, ...]) -> None:
    """Run a Celery worker. Further arguments are passed to `celery worker`, for example -Q keep or -c 4."""
    settings_module.get_settings()
    _exec(*worker_flags(celery_args))


@click.command(context_settings=_PASS)
@click.argument("celery_args", nargs=-1, type=click.UNPROCESSED)
def beat(celery_args: tuple[str, ...]) -> None:
    """Run Celery beat. Any number of beats may run: each sweep claims a time slot in PostgreSQL."""
    settings_module.get_settings()
    _exec("worker", "beat", *celery_args)


@click.command(context_settings=_PASS)
@click.argument("flower_args", nargs=-1, type=click.UNPROCESSED)
def flower(flower_args: tuple[str, ...]) -> None:
    """Run Flower. Set FLOWER_BASIC_AUTH=user:password to use its API."""
    settings_module.get_settings()
    _exec("worker", "flower", *flower_args)


def _exec(program: str, *args: str) -> None:
    """Replace this process, so that the program receives signals and sets the exit status."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", program, *args])  # noqa: S606 (no shell is wanted)
