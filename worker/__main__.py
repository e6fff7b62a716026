"""
`python -m worker worker|beat ARGUMENTS`: these commands of Celery, as `celery -A worker` has them.

Celery's own program loads all of its commands, a shell and a monitor among them: 12 MB in each process.
"""

import importlib
import sys

from celery.bin.base import CLIContext

from worker.celery import app


def main() -> None:
    """Run the command; options are also read from the environment, as by Celery."""
    name = sys.argv[1]
    command = getattr(importlib.import_module(f"celery.bin.{name}"), name)
    context = CLIContext(app=app, no_color=False, workdir=None, quiet=False)
    command.main(sys.argv[2:], prog_name=f"celery {name}", obj=context, auto_envvar_prefix=f"CELERY_{name.upper()}")


if __name__ == "__main__":
    main()
