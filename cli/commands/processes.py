"""The commands that run a process of moorage (receiver, worker, beat, flower), and `moorage migrate`."""

import errno
import os
import signal
import socket
import sys

import click
import psycopg

from db import migrate as migrations
from db import sqlstates
from db.connection import connect
from moorage import settings as settings_module
from moorage.errors import ConfigError
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
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to listen on.")
@click.option("--share", is_flag=True, help="Share the port with other receivers; the kernel distributes connections.")
def receiver(host: str, port: int, share: bool) -> None:
    """Serve webhooks and the API with granian, with one worker per process; scale by more processes."""
    settings = settings_module.get_settings()
    address = _find_free_address(host, port, share)
    os.environ |= {"GRANIAN_HOST": address, "GRANIAN_PORT": str(port)}  # for the line that web/asgi.py logs
    _exec("granian", *granian_flags(address, port, max_streams=settings.max_streams))


def _find_free_address(host: str, port: int, share: bool) -> str:
    """Return the numeric address of the host. granian shares a port silently, and panics if it cannot listen."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if share:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(address)
            return str(address[0])
    except OSError as error:
        remedy = "choose another --port or --host"
        if error.errno == errno.EADDRINUSE:
            remedy += ", or --share one with other receivers"
        raise ConfigError(f"cannot listen on {host}:{port} ({error.strerror}): {remedy}") from error


@click.command(context_settings=_PASS)
@click.argument("celery_args", nargs=-1, type=click.UNPROCESSED)
def worker(celery_args: tuple[str, ...]) -> None:
    """Run a Celery worker. Further arguments are passed to `celery worker`, for example -Q keep or -c 4."""
    _exec(*worker_flags(celery_args))


@click.command(context_settings=_PASS)
@click.argument("celery_args", nargs=-1, type=click.UNPROCESSED)
def beat(celery_args: tuple[str, ...]) -> None:
    """Run Celery beat. Any number of beats may run: each sweep claims a time slot in PostgreSQL."""
    _exec("worker", "beat", *celery_args)


@click.command(context_settings=_PASS)
@click.argument("flower_args", nargs=-1, type=click.UNPROCESSED)
def flower(flower_args: tuple[str, ...]) -> None:
    """Run Flower. Set FLOWER_BASIC_AUTH=user:password to use its API."""
    _exec("worker", "flower", *flower_args)


def _exec(program: str, *args: str) -> None:
    """Replace this process, so that the program receives signals and sets the exit status."""
    settings_module.get_settings()  # reports an invalid setting in one line
    sys.stdout.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # until cli/start.py handles it
    os.execv(sys.executable, [sys.executable, "-m", "cli.start", program, *args])  # noqa: S606 (no shell is wanted)
