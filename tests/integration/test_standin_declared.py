"""The stand-in's declared provider, read with the product's own declaration, verifier and poll."""

from collections.abc import Iterator

import pytest

import providers
from moorage.errors import BadSignature
from moorage.settings import Settings
from providers import Provider
from simulation.provider.client import Standin
from tests.integration.standin_receiver import Receiver, run_receiver, wait_for


@pytest.fixture
def standin(tmp_path) -> Iterator[Standin]:
    with Standin().start(tmp_path / "standin") as running:
        yield running


@pytest.fixture
def atelier(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> Provider:
    given = standin.environment()
    for name in ("ATELIER_WEBHOOK_SECRET", "ATELIER_API_KEY"):
        monkeypatch.setenv(name, given[name])
    servers = {"database_url": "postgresql://moorage@localhost/moorage", "broker_url": "redis://localhost"}
    path, address = given["MOORAGE_PROVIDERS_FILE"], given["MOORAGE_EGRESS_ALLOW"]
    return providers.load(Settings(_env_file=None, **servers, providers_file=path, egress_allow=address))["atelier"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with run_receiver() as running:
        yield running


def test_webhook_and_poll_of_one_file_of_declarations_agree(standin, atelier, receiver) -> None:
    """Both sides read the same TOML file, with separate code."""
    script = {"standin": {"duration_s": 0, "outputs": 2, "webhook": "bad_signature_first"}}
    receiver.statuses = [401]
    external_id = standin.create_declared("atelier", script, receiver.url())

    forged, right = wait_for(lambda: len(receiver.deliveries) > 1 and receiver.deliveries)
    names = [[(name.encode(), value.encode()) for name, value in one.headers.items()] for one in (forged, right)]

    with pytest.raises(BadSignature):
        atelier.verify(names[0], forged.body, 0)
    atelier.verify(names[1], right.body, 0)
    by_webhook, by_poll = atelier.parse_report(right.body), atelier.poll(external_id)
    assert by_webhook == by_poll
    assert (by_poll.external_id, by_poll.status, by_poll.raw_status) == (external_id, "succeeded", "Painted")
    assert [(file.path, file.problem) for file in by_poll.outputs] == [("outputs[0]", None), ("outputs[1]", None)]
    lines = standin.get_ledger()["summary"]["expected"]["kept"]
    assert {line["path"] for line in lines} == {"outputs[0]", "outputs[1]"}
