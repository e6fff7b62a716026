"""The stand-in's OpenAI Images, asked by the product's own client."""

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from moorage.errors import ProviderRefused, SubmitUncertain
from providers import Provider
from simulation.provider.client import Standin
from tests.integration.standin_clients import clients, order


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    with Standin().start(tmp_path_factory.mktemp("standin")) as running:
        yield running


@pytest.fixture(scope="module")
def openai(standin: Standin) -> Provider:
    return clients(standin)["openai"]


def generate(running: Standin, **asked: Any) -> requests.Response:
    key = {"Authorization": f"Bearer {running.environment()['OPENAI_API_KEY']}"}
    return requests.post(
        f"{running.url}/openai/v1/images/generations",
        json={"prompt": "a pier", "standin": {"duration_s": 0}, **asked},
        headers=key,
        timeout=60,
    )


def expected(standin: Standin, prediction_id: str, fate: str = "kept") -> list[dict[str, Any]]:
    """Return the ledger's outputs of one answer."""
    return [o for o in standin.ledger()["summary"]["expected"][fate] if o["prediction"] == prediction_id]


def test_the_answer_holds_the_files_of_the_ledger(standin: Standin, openai: Provider) -> None:
    """Path, bytes and id: by these three the comparison at the end is made."""
    taken = openai.submit(order("openai", n=2, size="256x128", standin={"duration_s": 0}))

    assert taken.report is not None
    outputs, lines = taken.report.outputs, expected(standin, taken.external_id)
    assert [found.path for found in outputs] == ["data[0].b64_json", "data[1].b64_json"]
    assert [line["path"] for line in lines] == [found.path for found in outputs]
    assert [line["sha256"] for line in lines] == [hashlib.sha256(found.data or b"").hexdigest() for found in outputs]
    assert {(found.data or b"")[16:24] for found in outputs} == {(256).to_bytes(4, "big") + (128).to_bytes(4, "big")}


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"model": "gpt-image-1"}, "b64_json"),
        ({"model": "dall-e-3"}, "url"),
        ({"model": "dall-e-3", "response_format": "b64_json"}, "b64_json"),
        ({"model": "gpt-image-1", "standin": {"duration_s": 0, "shape": "list"}}, "url"),
    ],
)
def test_pictures_come_as_base64_or_as_addresses(standin: Standin, asked: dict[str, Any], field: str) -> None:
    """gpt-image-* never gives a URL, dall-e-* does unless asked otherwise."""
    answer = generate(standin, **asked)

    [item] = answer.json()["data"]
    data = base64.b64decode(item[field]) if field == "b64_json" else requests.get(item[field], timeout=60).content
    [line] = expected(standin, answer.headers["x-request-id"])
    assert (list(item), line["path"]) == ([field], f"data[0].{field}")
    assert hashlib.sha256(data).hexdigest() == line["sha256"]


@pytest.mark.parametrize("status", ["failed", "canceled"])
def test_a_run_that_fails_is_an_error_of_the_request(standin: Standin, openai: Provider, status: str) -> None:
    """There is nobody to ask later how it ended."""
    wanted = ProviderRefused if status == "failed" else SubmitUncertain

    with pytest.raises(wanted):
        openai.submit(order("openai", standin={"duration_s": 0, "status": status}))


def test_what_nobody_saw_is_told_apart_from_what_must_be_kept(standin: Standin, openai: Provider) -> None:
    """A lost answer costs one paid generation: the ledger must neither hide it nor ask for its files."""
    with pytest.raises(SubmitUncertain):
        openai.submit(order("openai", prompt="lost at sea", standin={"duration_s": 0, "submit": "lost"}))

    [made] = standin.made(prompt="lost at sea")
    assert expected(standin, made["prediction"]) == []
    assert len(expected(standin, made["prediction"], "unseen")) == 1


@pytest.mark.parametrize(
    ("asked", "param"), [({"prompt": ""}, "prompt"), ({"n": 11}, "n"), ({"standin": {"oops": 1}}, "standin")]
)
def test_a_wrong_request_is_refused_as_openai_refuses(standin: Standin, asked: dict[str, Any], param: str) -> None:
    """Messages name the parameter."""
    answer = generate(standin, **asked)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_another_providers_key_is_refused(standin: Standin) -> None:
    """A mix-up of keys must show here."""
    answer = requests.get(
        f"{standin.url}/openai/v1/models", headers={"Authorization": f"Bearer {standin.token}"}, timeout=60
    )

    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
