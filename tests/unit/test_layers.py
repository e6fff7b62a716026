"""What a process loads: the receiver no worker's code, a publisher no task."""

import json
import os
import subprocess
import sys

import pytest

SAY = "import json, sys; print(json.dumps(sorted(sys.modules)))"
ENVIRONMENT = {"DATABASE_URL": "postgresql://u@127.0.0.1/x", "CELERY_BROKER_URL": "memory://"}


def loaded(project_root, module):
    """Return the modules that a fresh interpreter has after importing one."""
    environment = {"PATH": os.environ["PATH"], **ENVIRONMENT}
    command = [sys.executable, "-c", f"import {module}; {SAY}"]
    done = subprocess.run(command, cwd=project_root, env=environment, capture_output=True, timeout=110)
    assert done.returncode == 0, done.stderr.decode()
    return set(json.loads(done.stdout))


def test_the_receiver_loads_nothing_of_the_workers(project_root):
    """It starts quickly, and nothing in a file can crash the front door."""
    names = loaded(project_root, "receiver.app")

    assert "receiver.app" in names
    assert not names & {"tasks", "storage", "media", "egress", "embedded", "PIL", "boto3", "botocore"}


def test_sending_a_wake_loads_no_task(project_root):
    """Whoever publishes names a task; only a worker carries it out."""
    modules = ["worker", "worker.publish", "worker.celery", "worker.queues", "worker.schedule"]
    names = loaded(project_root, ", ".join(modules))

    assert names >= {*modules}
    assert not names & {
        "tasks",
        "storage",
        "media",
        "egress",
        "worker.celery_tasks",
        "worker.step_runner",
        "PIL",
        "boto3",
    }


@pytest.mark.parametrize("modules", ["celery.bin.beat, worker.beat", "celery.bin.worker", "flower.command"])
def test_a_process_loads_the_one_command_that_it_runs(project_root, modules):
    """Beat and Flower had the steps, boto3 and PIL in memory, and every process a shell: 38 and 12 MB in each."""
    names = loaded(project_root, f"worker.__main__, {modules}")

    assert "worker.celery" in names
    assert not names & {"tasks", "storage", "media", "egress", "worker.celery_tasks", "PIL", "boto3"}
    assert not names & {"celery.bin.celery", "celery.bin.shell", "prompt_toolkit", "click_repl"}


def test_a_worker_loads_its_tasks_before_it_forks(project_root):
    """Its processes share what was loaded before them."""
    assert {"worker.celery_tasks", "worker.step_runner"} <= loaded(
        project_root, "worker.celery; worker.celery.signals.celeryd_init.send(None)"
    )


def test_the_lower_rooms_load_none_above_them(project_root):
    """Imports run downward."""
    names = loaded(project_root, "providers, moorage.lifecycle, moorage.settings, db.leases")

    assert not names & {
        "tasks",
        "worker",
        "receiver",
        "web",
        "storage",
        "media",
        "egress",
        "cli",
        "simulation",
        "embedded",
    }


def test_importing_the_worker_package_reads_no_setting(project_root):
    """`worker/__init__.py` is empty: Celery finds the app in worker/celery.py."""
    assert (project_root / "worker" / "__init__.py").read_bytes() == b""
