"""
`python -m worker worker|beat|flower ARGUMENTS`: these commands of Celery, as `celery -A worker` has them.

Celery's own program loads all of its commands, a shell and a monitor among them: 12 MB in each process.
"""

import importlib
import sys

import click
from celery.bin.base import CLIContext

from worker.celery import app


def main() -> None:
    """Run the command; options are also read from the environment, as by Celery."""
    name = sys.argv[1]
    command = getattr(importlib.import_module("flower.command" if name == "flower" else f"celery.bin.{name}"), name)
    context = CLIContext(app=app, no_color=False, workdir=None, quiet=False)
    click.Group("celery", commands={name: command}).main(prog_name="celery", obj=context, auto_envvar_prefix="CELERY")


if __name__ == "__main__":
    main()
