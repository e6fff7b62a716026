"""Schemas of fal's models: where their documents are, what is read from them, and what they decide."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

import providers
from moorage.errors import ConfigError, ProviderRefused, ProviderUnavailable
from moorage.settings import Settings
from providers.fal import Fal

BASE = {"database_url": "postgresql://moorage@localhost/moorage", "broker_url": "redis://localhost"}
MODEL = "fal-ai/flux/dev"


def body_of(name: str) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}


FILE = {"type": "object", "properties": {"url": {"type": "string"}, "content_type": {"type": "string"}}}
DOCUMENT: dict[str, Any] = {
    "paths": {
        "/": {},
        f"/{MODEL}": {"post": {"requestBody": body_of("In")}},
        "/fal-ai/flux/requests/{request_id}": {
            "get": {"responses": {"200": body_of("Out")}},
            "put": {},
        },
        "/fal-ai/flux/requests/{request_id}/status": {"get": {"responses": {}}},
    },
    "components": {
        "schemas": {
            "In": {"type": "object", "required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
            "File": FILE,
            "Out": {
                "type": "object",
                "properties": {
                    "images": {"type": "array", "items": {"$ref": "#/components/schemas/File"}},
                    "input_mask": {"$ref": "#/components/schemas/File"},
                    "page": {"type": "string"},
                },
            },
        }
    },
}  # fmt: skip
OWN, OTHER = "https://v3.fal.media/files/a.png", "https://elsewhere.example/b.png"
PAYLOAD = {
    "images": [{"url": OWN}, {"url": OTHER}],
    "input_mask": {"url": "https://v3.fal.media/files/mask.png"},
    "page": "https://elsewhere.example/page",
    "more": "https://elsewhere.example/more",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / f"{MODEL}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(DOCUMENT), encoding="utf-8")
    return tmp_path


def fal(location: object) -> Fal:
    provider = providers.load(Settings(_env_file=None, **BASE, fal_openapi=str(location)))["fal"]
    assert isinstance(provider, Fal)
    return provider


def read(provider: Fal, model: str | None) -> tuple[list[tuple[str, bool]], set[str]]:
    """Return the paths of outputs, each with whether it has a problem, and the paths of mentions."""
    body = json.dumps({"request_id": "r1", "status": "OK", "payload": PAYLOAD}).encode()
    report = provider.refine_report(provider.parse_report(body), body, model)
    return [(file.path, file.is_foreign) for file in report.outputs], {file.path for file in report.mentions}


def test_the_input_of_a_model_is_that_of_its_post_request(folder):
    """With references resolved; another model, and one without a document, has none."""
    provider = fal(folder / "{model}.json")

    schema = provider.get_input_schema(MODEL)

    assert schema == DOCUMENT["components"]["schemas"]["In"]
    assert provider.get_input_schema("fal-ai/flux/pro") is None
    with pytest.raises(ProviderRefused):
        provider.get_input_schema("../flux")


def test_the_output_schema_tells_files_from_echoes_and_texts(folder):
    """A file under the key of an input, and a text that looks like a file on another host."""
    paths = ["payload.images[0].url", "payload.images[1].url", "payload.page", "payload.more"]
    unknown = ([(path, path != paths[0]) for path in paths], {"payload.input_mask.url"})

    outputs, mentions = read(fal(folder / "{model}.json"), MODEL)

    assert read(fal(folder / "{model}.json"), None) == read(fal(folder / "none/{model}"), MODEL) == unknown
    assert outputs == [
        ("payload.images[0].url", False), ("payload.images[1].url", False), ("payload.input_mask.url", False),
        ("payload.more", True),
    ]  # fmt: skip
    assert mentions == {"payload.page"}


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"paths": 7}', b'{"paths": {"/fal-ai/flux/dev": 7}}', b"\xff",
     json.dumps(DOCUMENT | {"components": {}}).encode()],
)  # fmt: skip
def test_a_document_that_is_none_checks_nothing(folder, content):
    """Documents come from outside: a job is accepted unchecked, a report read without it."""
    (folder / f"{MODEL}.json").write_bytes(content)
    provider = fal(folder / "{model}.json")

    with contextlib.suppress(ProviderUnavailable):
        assert provider.get_input_schema(MODEL) is None
    assert read(provider, MODEL) == read(provider, None)


def test_a_folder_in_place_of_a_document_is_an_outage_of_it(folder):
    """As any other error of the file system: the request is accepted unchecked."""
    with pytest.raises(ProviderUnavailable, match="cannot be read"):
        fal(folder / "{model}").get_input_schema("fal-ai/flux")


@pytest.mark.parametrize(
    "location", ["https://fal.example/doc", "http://fal.example/{model}", "ftp://x/{model}", "x/{model}"]
)
def test_a_place_that_leads_nowhere_refuses_the_start(location):
    """A schema that somebody in between can change decides what is a file."""
    with pytest.raises(ConfigError, match="FAL_OPENAPI"):
        fal(location)
