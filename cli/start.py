"""
Entry point of `moorage`, and of the programs that its commands become: `python -m cli.start MODULE ARGUMENTS`.

Ctrl-C ends them silently while they import their modules, which takes up to a second: Python's own handler, which
raises KeyboardInterrupt wherever the import is, is replaced until `cli.main` or the program has set its own. SIGTERM
ends them as process 1 of a container, too, for which the kernel has no default.
"""

import importlib
import os
import runpy
import signal
import sys


def run() -> None:
    """Run the command line."""
    _end_at_interrupt()
    importlib.import_module("cli.main").main()


def _end_at_interrupt() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the caller ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.getpid() == 1:  # of a container: the kernel would ignore SIGTERM
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})  # blocked before exec


if __name__ == "__main__":
    _end_at_interrupt()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # until the program has a handler
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
