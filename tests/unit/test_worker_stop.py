"""How long the processes of a worker take to end."""

import os
import subprocess
import sys
from pathlib import Path

# A child of a pool whose last result nobody reads, as when the main process is stopping.
CHILD = """
import billiard
from worker import celery_tasks
from billiard import pool

queues = [billiard.get_context().SimpleQueue() for _ in range(2)]
child = pool.Worker(*queues, on_ready_counter=billiard.Value("i", 0))
waits = []
pool.time.sleep = waits.append
assert child._ensure_messages_consumed(completed=1) is False
print(sum(waits))
"""


def test_a_child_waits_two_seconds_for_its_result_to_be_read(project_root: Path) -> None:
    """At billiard's half a minute a stop takes as long, and whatever started the worker kills it."""
    environment = {"PATH": os.environ["PATH"], "DATABASE_URL": "postgresql://u@127.0.0.1/x"}
    environment["CELERY_BROKER_URL"] = "memory://"
    command = [sys.executable, "-c", CHILD]
    done = subprocess.run(command, cwd=project_root, env=environment, capture_output=True, text=True, timeout=110)

    assert done.returncode == 0, done.stderr
    assert 1 <= float(done.stdout) <= 3
