"""The primary dies under load and its standby is promoted: nothing acknowledged is lost, and no file is kept twice."""

import sys
import threading
from collections.abc import Iterator

import pytest

from embedded.standby import Standby
from tests.acceptance.world import World
from tests.support.standby import replicated
from tests.support.standin import Standin
from worker.local_deployment import LocalDeployment

pytestmark = pytest.mark.prove  # two servers and a system of their own; integration/test_promotion.py is the short form

JOBS = 60
DIES_AFTER = 20  # jobs
SECONDS_WITHOUT_PRIMARY = 5.0


@pytest.fixture(scope="module")
def standby(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standby]:
    with replicated(tmp_path_factory.mktemp("replicated")) as made:
        yield made


@pytest.fixture(scope="module")
def alone(standby: Standby, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Run a system of its own on the two servers."""
    folder = tmp_path_factory.mktemp("promotion")
    overrides = {"DATABASE_URL": standby.both_url("moorage")}
    with (
        Standin().start(folder / "standin") as standin,
        LocalDeployment(folder / "local", keep_workers=2, standin=standin, overrides=overrides) as local,
    ):
        made = World(local, standin, folder)
        yield made
        made.close()


@pytest.mark.timeout(900)
def test_a_promotion_under_load_loses_and_doubles_nothing(alone: World, standby: Standby) -> None:
    """No process is restarted: each reaches the new primary by the hosts of DATABASE_URL."""
    before = alone.pids()
    promotion = threading.Timer(SECONDS_WITHOUT_PRIMARY, standby.promote)
    asked = []
    for number in range(JOBS):
        if number == DIES_AFTER:
            standby.primary.kill()
            promotion.start()
        asked.append(alone.ask({"outputs": 3, "webhook_life_s": 120.0}))
    promotion.join()

    alone.await_end(*asked, seconds=300)
    recorded = {row["webhook_id"] for row in alone.rows("SELECT webhook_id FROM deliveries")}
    acknowledged = set(alone.standin.get_ledger()["summary"]["acknowledged"])
    outputs = [row for one in asked for row in alone.outputs(one)]
    sys.stdout.write(f"\n{JOBS} jobs, {len(outputs)} files, {len(acknowledged)} webhooks acknowledged")
    assert acknowledged <= recorded
    assert {alone.job(one)["state"] for one in asked} == {"succeeded"}
    for one in asked:
        alone.check(one)
    assert len(outputs) == 3 * JOBS
    assert {row["crashes"] for row in outputs} == {0}
    assert alone.rows("SELECT * FROM dead_letters") == []
    assert alone.pids() == before
