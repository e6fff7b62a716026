"""A real Celery worker for tests that need the process."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator

from tests.integration import command_line as cli
from tests.support import fork_server


@contextlib.contextmanager
def running_worker(env: dict[str, str], *flags: str) -> Iterator[None]:
    """Run a worker until the block ends."""
    with tempfile.TemporaryFile() as log:
        command = ["-m", "cli.main", "worker", "-c", "1", "-l", "error", *flags]
        worker = fork_server.popen(command, cwd=cli.ROOT, env=env, stdout=log, stderr=log)
        try:
            yield
            assert worker.poll() is None, os.pread(log.fileno(), 10_000, 0).decode()
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(60)
