"""The stand-in's OpenAI Images, called by the product's own client."""

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from moorage.errors import ProviderRefused, SubmitUncertain
from moorage.provider_types import InputFile
from providers import Provider
from tests.integration.standin_clients import build_clients, build_submit_request
from tests.support.standin import Standin


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    with Standin().start(tmp_path_factory.mktemp("standin")) as running:
        yield running


@pytest.fixture(scope="module")
def openai(standin: Standin) -> Provider:
    return build_clients(standin)["openai"]


def generate(running: Standin, **body: Any) -> requests.Response:
    key = {"Authorization": f"Bearer {running.environment()['OPENAI_API_KEY']}"}
    return requests.post(
        f"{running.url}/openai/v1/images/generations",
        json={"prompt": "a pier", "standin": {"duration_s": 0}, **body},
        headers=key,
        timeout=60,
    )


def expected(standin: Standin, prediction_id: str, result: str = "kept") -> list[dict[str, Any]]:
    """Return the ledger's outputs of a prediction with this expected result."""
    return [o for o in standin.get_ledger()["summary"]["expected"][result] if o["prediction"] == prediction_id]


def test_the_response_has_the_files_of_the_ledger(standin: Standin, openai: Provider) -> None:
    """The ledger check compares path, bytes and id."""
    submitted = openai.submit(build_submit_request("openai", n=2, size="256x128", standin={"duration_s": 0}))

    assert submitted.report is not None
    outputs, lines = submitted.report.outputs, expected(standin, submitted.external_id)
    assert [output.path for output in outputs] == ["data[0].b64_json", "data[1].b64_json"]
    assert [line["path"] for line in lines] == [output.path for output in outputs]
    assert [line["sha256"] for line in lines] == [hashlib.sha256(output.data or b"").hexdigest() for output in outputs]
    assert {(output.data or b"")[16:24] for output in outputs} == {(256).to_bytes(4, "big") + (128).to_bytes(4, "big")}


def test_an_edit_takes_files_in_a_form(standin: Standin, openai: Provider) -> None:
    """The ledger has their digests; the format is the one that was asked for."""
    data = b"\x89PNG\r\n\x1a\n\r\n--and so on"
    files = [InputFile("image.png", "image/png", data), InputFile("image.jpeg", "image/jpeg", data + b"2")]
    request = build_submit_request("openai", n=2, image=files, output_format="webp", standin={"duration_s": 0})

    submitted = openai.submit(request)

    assert submitted.report is not None
    assert [(output.data or b"")[8:12] for output in submitted.report.outputs] == [b"WEBP"] * 2
    lines = [line for line in standin.get_ledger()["lines"] if line["kind"] == "input"]
    assert [(line["prediction"], line["name"], line["sha256"]) for line in lines] == [
        (submitted.external_id, "image", hashlib.sha256(file.data).hexdigest()) for file in files
    ]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model": "gpt-image-1"}, "b64_json"),
        ({"model": "dall-e-3"}, "url"),
        ({"model": "dall-e-3", "response_format": "b64_json"}, "b64_json"),
        ({"model": "gpt-image-1", "standin": {"duration_s": 0, "shape": "list"}}, "url"),
    ],
)
def test_pictures_are_returned_as_base64_or_as_urls(standin: Standin, body: dict[str, Any], field: str) -> None:
    """gpt-image-* never returns a URL, dall-e-* does by default."""
    response = generate(standin, **body)

    [item] = response.json()["data"]
    data = base64.b64decode(item[field]) if field == "b64_json" else requests.get(item[field], timeout=60).content
    [line] = expected(standin, response.headers["x-request-id"])
    assert (list(item), line["path"]) == ([field], f"data[0].{field}")
    assert hashlib.sha256(data).hexdigest() == line["sha256"]


@pytest.mark.parametrize("status", ["failed", "canceled"])
def test_a_failed_prediction_is_an_error_of_the_request(standin: Standin, openai: Provider, status: str) -> None:
    """The API has no other way to report the end."""
    expected_error = ProviderRefused if status == "failed" else SubmitUncertain

    with pytest.raises(expected_error):
        openai.submit(build_submit_request("openai", standin={"duration_s": 0, "status": status}))


def test_outputs_of_a_lost_response_are_unseen_not_expected_to_be_kept(standin: Standin, openai: Provider) -> None:
    """A lost response costs one paid generation: the ledger must neither hide it nor expect its files."""
    with pytest.raises(SubmitUncertain):
        openai.submit(build_submit_request("openai", prompt="lost at sea", standin={"duration_s": 0, "submit": "lost"}))

    [created] = standin.list_created(prompt="lost at sea")
    assert expected(standin, created["prediction"]) == []
    assert len(expected(standin, created["prediction"], "unseen")) == 1


@pytest.mark.parametrize(
    ("body", "param"), [({"prompt": ""}, "prompt"), ({"n": 11}, "n"), ({"standin": {"oops": 1}}, "standin")]
)
def test_an_invalid_request_is_rejected_in_openais_format(standin: Standin, body: dict[str, Any], param: str) -> None:
    """Errors name the parameter."""
    response = generate(standin, **body)

    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_another_providers_key_is_rejected(standin: Standin) -> None:
    """A mix-up of keys must be noticed."""
    response = requests.get(
        f"{standin.url}/openai/v1/models", headers={"Authorization": f"Bearer {standin.token}"}, timeout=60
    )

    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
