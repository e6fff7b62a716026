"""The models that providers offer, over HTTP: what each takes and makes, and the schema of its input."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from moorage.errors import ConfigError, ProviderRefused, ProviderUnavailable
from tests.integration.provider_server import Server, answer, provider_at, running

VERSION = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa"
PROMPT = {"type": "string", "title": "Prompt"}
PICTURE = {"type": "string", "format": "uri"}


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as one:
        one.answer = answer(404, b'{"detail": "not found"}')
        yield one


def model(properties: dict[str, Any], **schemas: Any) -> bytes:
    """Return a model as Replicate describes it."""
    wanted = {"type": "object", "properties": properties, "required": ["prompt"]}
    document = {"components": {"schemas": {"Input": wanted, **schemas}}}
    return json.dumps({"description": "It draws.", "latest_version": {"openapi_schema": document}}).encode()


def test_replicate_models_are_described_by_their_schemas(server):
    """An image-to-video job needs a model that makes a video and takes a picture."""
    described = {
        "draws/words": {"prompt": PROMPT, "image_size": {"type": "string"}},
        "draws/pictures": {"prompt": PROMPT, "input_image": PICTURE},
        "films/words": {"prompt": PROMPT, "duration": {"type": "integer"}},
        "films/pictures": {"prompt": PROMPT, "fps": {"type": "integer"}, "image": PICTURE},
    }
    for name, properties in described.items():
        server.answers[f"/v1/models/{name}"] = answer(200, model(properties))
    provider = provider_at("replicate", server.server_port, replicate_models=",".join([*described, "gone/away"]))

    images, videos = provider.describe_models("image"), provider.describe_models("video")

    assert [(one["name"], one["accepts"]) for one in images] == [("draws/words", []), ("draws/pictures", ["image"])]
    assert [(one["name"], one["accepts"]) for one in videos] == [("films/words", []), ("films/pictures", ["image"])]
    assert [one["picture_field"] for one in (*images, *videos)] == [None, "input_image", None, "image"]
    assert images[0]["description"] == "It draws."


def test_an_outage_is_distinguished_from_a_deleted_model(server):
    """A list that is short because of an outage must not be remembered."""
    server.answers["/v1/models/a/b"] = answer(503)

    with pytest.raises(ProviderUnavailable):
        provider_at("replicate", server.server_port, replicate_models="gone/away,a/b").describe_models("image")


@pytest.mark.parametrize(
    ("name", "path"),
    [("a/b", "/v1/models/a/b"), (f"a/b:{VERSION}", f"/v1/models/a/b/versions/{VERSION}")],
)
def test_a_schema_is_that_of_the_version_an_order_would_go_to(server, name, path):
    """With references resolved: the validator of an input has no document for them."""
    body = model({"prompt": PROMPT, "ratio": {"allOf": [{"$ref": "#/components/schemas/ratio"}]}}, ratio={"enum": [1]})
    said = body if name == "a/b" else json.dumps(json.loads(body)["latest_version"]).encode()
    server.answers[path] = answer(200, said)

    schema = provider_at("replicate", server.server_port).get_input_schema(name)

    assert schema["required"] == ["prompt"]
    assert schema["properties"]["ratio"] == {"allOf": [{"enum": [1]}]}


@pytest.mark.parametrize("name", [VERSION, "deployments/a/b"])
def test_what_no_address_describes_has_no_schema(server, name):
    """Its input cannot be checked here, and is not refused for it."""
    assert provider_at("replicate", server.server_port).get_input_schema(name) is None
    assert server.asked == []


@pytest.mark.parametrize("body", [b"", b"[]", b'{"latest_version": {"openapi_schema": {"components": 1}}}'])
def test_a_model_that_cannot_be_read_is_an_outage(server, body):
    """Which is no reason to refuse an input."""
    server.answers["/v1/models/a/b"] = answer(200, body)

    with pytest.raises(ProviderUnavailable):
        provider_at("replicate", server.server_port).get_input_schema("a/b")


@pytest.mark.parametrize("body", [b'{"latest_version": null}', b'{"latest_version": {"openapi_schema": null}}'])
def test_a_model_without_a_version_has_no_schema(server, body):
    """Official models may hide it."""
    server.answers["/v1/models/a/b"] = answer(200, body)
    provider = provider_at("replicate", server.server_port, replicate_models="a/b")

    assert provider.get_input_schema("a/b") is None
    assert provider.describe_models("image") == []


@pytest.mark.parametrize("name", ["a/b", "a", "../b"])
def test_a_model_that_does_not_exist_is_refused(server, name):
    """Before a job is stored for it."""
    with pytest.raises(ProviderRefused):
        provider_at("replicate", server.server_port).get_input_schema(name)


@pytest.mark.parametrize("name", ["replicate", "fal"])
def test_a_setting_that_names_no_model_refuses_the_start(server, name):
    """It would fail every list."""
    with pytest.raises(ConfigError, match=rf"{name.upper()}_MODELS: 'flux' is not a model"):
        provider_at(name, server.server_port, **{f"{name}_models": "a/b,flux"})


def test_fal_models_are_described_by_their_names(server):
    """fal documents no list."""
    names = "fal-ai/flux/dev,fal-ai/flux/dev/image-to-image,fal-ai/x-video/text-to-video,fal-ai/x/image-to-video"
    provider = provider_at("fal", server.server_port, fal_models=names)

    told = [(one["name"], one["accepts"]) for kind in ("image", "video") for one in provider.describe_models(kind)]

    assert told == [
        ("fal-ai/flux/dev", []),
        ("fal-ai/flux/dev/image-to-image", ["image"]),
        ("fal-ai/x-video/text-to-video", []),
        ("fal-ai/x/image-to-video", ["image"]),
    ]
    assert provider.get_input_schema("fal-ai/flux/dev") is None
    with pytest.raises(ProviderRefused, match="model"):
        provider.get_input_schema("flux")
    assert server.asked == []


def test_openais_models_make_pictures(server):
    """Its videos were shut down in September 2026."""
    provider = provider_at("openai", server.server_port, openai_models="gpt-image-1,dall-e-3")

    assert [one["name"] for one in provider.describe_models("image")] == ["gpt-image-1", "dall-e-3"]
    assert provider.describe_models("video") == []
    assert [one["accepts"] for one in provider.describe_models("image")] == [["image"], []]
    assert provider.get_input_schema("dall-e-3") is None


@pytest.mark.parametrize("name", ["replicate", "fal", "openai"])
def test_a_model_in_a_list_has_the_same_facts_everywhere(server, name):
    """The list has one form for every provider."""
    server.answers["/v1/models/a/b"] = answer(200, model({"prompt": PROMPT}))
    given = {f"{name}_models": "a/b"}

    (told,) = provider_at(name, server.server_port, **given).describe_models("image")

    assert set(told) == {"name", "description", "kind", "accepts", "picture_field"}


@pytest.mark.parametrize(("status", "error"), [(404, None), (403, ProviderRefused), (503, ProviderUnavailable)])
def test_a_document_of_fal_that_is_not_served_is_none_or_an_outage(server, status, error):
    """A model without a document can be used; the key is not sent to where documents are."""
    base = f"http://127.0.0.1:{server.server_port}"
    fal = provider_at("fal", server.server_port, fal_openapi=f"{base}/openapi.json?id={{model}}")
    server.answer = answer(status)

    if error:
        with pytest.raises(error):
            fal.get_input_schema("fal-ai/flux/dev")
    else:
        assert fal.get_input_schema("fal-ai/flux/dev") is None

    assert [(one.path, "Authorization" in one.headers) for one in server.asked] == [
        ("/openapi.json?id=fal-ai/flux/dev", False)
    ]
