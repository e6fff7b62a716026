"""The stand-in's declared providers, read with the product's own declarations, verifiers and polls."""

import contextlib
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest

import providers
from moorage.errors import BadSignature, KeysStale
from moorage.provider_types import SubmitRequest
from moorage.settings import Settings
from providers import Provider
from simulation.provider import declared as standin_declared
from tests.integration.standin_receiver import Receiver, run_receiver, wait_for
from tests.support import declared
from tests.support.standin import Standin


@pytest.fixture
def standin(tmp_path) -> Iterator[Standin]:
    with Standin().start(tmp_path / "standin") as running:
        yield running


@pytest.fixture
def loaded(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> dict[str, Provider]:
    given = standin.environment()
    for name, value in given.items():
        if not name.startswith("MOORAGE_"):
            monkeypatch.setenv(name, value)
    servers = {"database_url": "postgresql://moorage@localhost/moorage", "broker_url": "redis://localhost"}
    path, address = given["MOORAGE_PROVIDERS_FILE"], given["MOORAGE_EGRESS_ALLOW"]
    return dict(providers.load(Settings(_env_file=None, **servers, providers_file=path, egress_allow=address)))


@pytest.fixture
def atelier(loaded: dict[str, Provider]) -> Provider:
    return loaded["atelier"]


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


WORDS = {
    "bfl": "Ready", "gemini": "video.generated", "ideogram": "done", "luma": "completed", "runpod": "COMPLETED",
    "runway": "SUCCEEDED",
}  # fmt: skip


def test_the_stand_in_serves_the_whole_catalog():
    """A new entry adds its word of success."""
    assert set(WORDS) == {path.stem for path in declared.CATALOG}


def test_a_copy_of_an_entry_replaces_it(tmp_path):
    """Who tries a declaration of their own with the stand-in names it as they will."""
    path = tmp_path / "own.toml"
    path.write_text(declared.read_entry(declared.CATALOG[0]).replace('Black Forest Labs"', 'Ours"'), encoding="utf-8")

    tables = standin_declared.read_declarations(path)

    assert tables["bfl"]["label"] == "Ours"
    assert set(tables) == set(WORDS)


@pytest.mark.parametrize("name", list(WORDS))
def test_webhook_and_poll_of_an_entry_of_the_catalog_agree(standin, loaded, receiver, name) -> None:
    """Signed in its family, from its body; what has no signature is a hint, what has no poll is signed."""
    provider = loaded[name]
    external_id = standin.create_declared(name, {"standin": {"duration_s": 0}}, receiver.url())
    reports = []

    if provider.sends_webhooks:
        (delivery,) = wait_for(lambda: receiver.deliveries)
        headers = [(name.encode(), value.encode()) for name, value in delivery.headers.items()]
        with contextlib.suppress(KeysStale):
            provider.verify(headers, delivery.body, time.time())
        provider.fetch_keys()
        provider.verify(headers, delivery.body, time.time())
        if provider.has_secret:
            reports.append(provider.parse_report(delivery.body))
            with pytest.raises(BadSignature):
                provider.verify(headers, delivery.body + b" ", time.time())
        else:
            assert provider.parse_report(delivery.body).is_unverified
    if provider.can_poll:
        reports.append(
            wait_for(lambda: (found := provider.poll(external_id, "endpoint")).status == "succeeded" and found)
        )

    assert reports
    for report in reports:
        assert (report.external_id, report.status, report.raw_status) == (external_id, "succeeded", WORDS[name])
        assert [file.problem for file in report.outputs] == [None]
        lines = standin.get_ledger()["summary"]["expected"]["kept"]
        assert report.outputs[0].path in {line["path"] for line in lines if line["prediction"] == external_id}


@pytest.mark.parametrize("name", list(WORDS))
def test_a_failure_of_an_entry_of_the_catalog_has_its_word(standin, loaded, receiver, name) -> None:
    """The reason is the provider's."""
    provider = loaded[name]
    script = {"standin": {"duration_s": 0, "status": "failed"}}
    external_id = standin.create_declared(name, script, receiver.url())
    if provider.can_poll:
        report = wait_for(lambda: (found := provider.poll(external_id, "endpoint")).status == "failed" and found)
    else:
        report = provider.parse_report(wait_for(lambda: receiver.deliveries)[0].body)

    assert (report.status, report.outputs) == ("failed", ())


def test_black_forest_labs_takes_submissions(standin, loaded, receiver) -> None:
    """The webhook is signed with the secret that the submission named, and the poll finds the same."""
    bfl = loaded["bfl"]
    input_ = {"prompt": "a boat", "standin": {"duration_s": 0}}

    submitted = bfl.submit(SubmitRequest(uuid4(), "flux-2-pro", input_, receiver.url()))
    (delivery,) = wait_for(lambda: receiver.deliveries)

    bfl.verify([(name.encode(), value.encode()) for name, value in delivery.headers.items()], delivery.body, 0)
    assert bfl.parse_report(delivery.body) == bfl.poll(submitted.external_id)
    assert bfl.parse_report(delivery.body).external_id == submitted.external_id
