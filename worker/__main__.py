"""
`python -m worker worker|beat|flower ARGUMENTS`: these commands of Celery, as `celery -A worker` has them.

Celery's own program loads all of its commands, a shell and a monitor among them: 12 MB in each process.
"""

import errno
import importlib
import sys
from typing import Final

import click
from celery.bin.base import CLIContext

from moorage import settings as settings_module
from worker.celery import app

LISTEN_ERRORS: Final = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)


def main() -> None:
    """Run the command; options are also read from the environment, as by Celery."""
    name = sys.argv[1]
    command = getattr(importlib.import_module("flower.command" if name == "flower" else f"celery.bin.{name}"), name)
    is_json = settings_module.get_settings().log_format == "json"  # a banner is no object of JSON
    context = CLIContext(app=app, no_color=False, workdir=None, quiet=is_json)
    group = click.Group("celery", commands={name: command})
    try:
        group.main(prog_name="celery", obj=context, auto_envvar_prefix="CELERY")
    except OSError as error:
        if name != "flower" or error.errno not in LISTEN_ERRORS:
            raise
        raise SystemExit(
            f"moorage: Flower cannot listen ({error.strerror}): choose another --port or --address"
        ) from error


if __name__ == "__main__":
    main()
