"""An owner is erased in the running system, while one of its predictions still runs at its provider."""

import pytest
import requests

from tests.acceptance.api_caller import entry, owner
from tests.acceptance.world import World, until


@pytest.mark.prove
def test_an_erased_owner_is_gone_while_the_workers_work(world: World) -> None:
    """The run is cancelled at the provider; its webhook about that arrives when its rows are gone."""
    ada, bob = owner(world), owner(world)
    kept, runs, others = ada.order(entry()), ada.order(entry(duration_s=600.0)), bob.order(entry())
    picture = ada.await_end(kept)["variants"][0]["url"]
    bob.await_end(others)
    ada.await_state(runs, "open")
    until(lambda: ada.get(f"/jobs/{runs}")["predictions"][0]["state"] == "running", "the prediction runs")
    admin = {"Authorization": f"Bearer {world.local.secrets['api_token']}"}
    assert requests.get(picture, timeout=30).status_code == 200

    made = requests.post(f"{world.local.url}/v1/erasures", json={"owner": ada.owner}, headers=admin, timeout=30).json()
    address = f"{world.local.url}/v1/erasures/{made['erasure_id']}"
    until(lambda: requests.get(address, headers=admin, timeout=30).json()["state"] == "finished", "it is finished")

    assert requests.get(address, headers=admin, timeout=30).json()["removed"]["jobs"] == 2
    assert ada.ask("GET", "/jobs").status_code == 401
    assert requests.get(picture, timeout=30).status_code in (403, 404)
    assert world.rows("SELECT id FROM jobs WHERE owner = %(owner)s", owner=ada.owner) == []
    assert bob.get(f"/jobs/{others}")["state"] == "succeeded"
