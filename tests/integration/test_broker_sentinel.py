"""A broker behind Redis Sentinel: found by the primary's name, and followed to the next primary."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.commands.doctor.checks import check_broker
from embedded.stack import Stack
from moorage.settings import load_settings
from tests.integration import command_line as cli
from tests.integration.broker_worker import Worker, running
from tests.support import fork_server, sentinels

PUBLISH = """
from moorage.model import Wake
from worker import inspect_cluster, publish
import uuid
print(publish.publish_wakes([Wake("keep", uuid.uuid4())]), inspect_cluster.read_queue_depths()["keep"])
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sentinels.Watched]:
    with sentinels.watching(tmp_path_factory.mktemp("sentinels")) as made:
        yield made


def test_a_broker_is_found_by_the_name_of_its_primary(
    watched: sentinels.Watched, stack: Stack, database_url: str, project_root: Path
) -> None:
    """The setting took sentinel:// and could never work: nothing gave kombu the primary's name."""
    env = cli.environment(stack, database_url, CELERY_BROKER_URL=watched.url)
    settings = load_settings(_env_file=None, database_url=database_url, broker_url=watched.url)

    sent = fork_server.run(["-c", PUBLISH], cwd=project_root, env=env)

    assert sent.stdout.split() == ["1", "1"], sent.stderr
    assert {check.level for check in check_broker(settings)} == {"ok"}
    wrong = watched.url.replace(sentinels.NAME, "another")
    (found,) = check_broker(load_settings(_env_file=None, database_url=database_url, broker_url=wrong))
    assert found.what == "the sentinels name no primary"


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_a_worker_follows_a_failover(
    watched: sentinels.Watched, stack: Stack, template_database: str, tmp_path: Path
) -> None:
    """The sentinels promote the replica; nobody restarts the worker."""
    url = stack.postgres.create_database("moorage_sentinel", template=template_database)
    env = cli.environment(stack, url, CELERY_BROKER_URL=watched.url)
    with running(["worker", "-c", "1", "-n", "followed@%h"], env, tmp_path / "worker.log") as (process, log):
        worker = Worker(process, log, url, watched)
        worker.check_consumes()

        watched.kill_primary()

        worker.check_consumes()
        sent = fork_server.run(["-c", PUBLISH], cwd=cli.ROOT, env=env)
        worker.conn.close()
    assert sent.stdout.split()[0] == "1", sent.stderr
