"""Every parser against every shape of an answer: N files named are N outputs, or each other one has its reason."""

import base64
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import providers
from moorage.provider_types import PredictionReport
from moorage.settings import Settings
from providers.openai import build_report
from tests.unit.payload_shapes import FOREIGN, PNG, SHAPES, Shape

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the computer is shared
SETTINGS = {
    "database_url": "postgresql://moorage@localhost/moorage",
    "broker_url": "redis://localhost",
    "fal_key": "id:key",
    "openai_api_key": "sk-x",
    "openai_output_hosts": "files.example",
    "standard_output_hosts": "files.example",
    "public_url": "https://us.example",
}
LOADED = providers.load(Settings(_env_file=None, **SETTINGS))
HOSTS = {"fal": "v3.fal.media", "replicate": "replicate.delivery", "standard": "files.example"}
PARTS = {"fal": "payload", "replicate": "output", "standard": "data.output"}


def report(provider: str, part: Any, status: str = "succeeded") -> PredictionReport:
    """Return what the parser of a provider reads in an answer whose model wrote this part."""
    given = {"image": "https://replicate.delivery/x/in.png"}
    body = {
        "fal": {"request_id": "r", "status": "OK" if status == "succeeded" else "ERROR", "payload": part},
        "replicate": {"id": "r", "status": status, "input": given, "output": part, "urls": {"get": FOREIGN}},
        "standard": {
            "type": "image",
            "data": {"id": "r", "status": status, **(part if provider == "standard" else {})},
        },
        "responses": {"id": "r", "status": "completed" if status == "succeeded" else "failed", "output": part},
    }
    if provider == "images":
        openai = LOADED["openai"]
        return build_report({"created": 1}, "r", "gpt-image-1", openai.extract_files(part, "data"), None)
    if provider == "responses":
        return LOADED["openai"]._parse_response(json.dumps(body[provider]).encode())
    return LOADED[provider].parse_report(json.dumps(body[provider]).encode())


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_each_shape_is_read_as_documented(shape: Shape) -> None:
    """Outputs in document order with their paths; whatever else looks like a file is a mention with a reason."""
    found = report(shape.provider, shape.part)

    assert [file.path for file in found.outputs] == shape.outputs
    assert [file.path for file in found.mentions] == shape.mentions
    assert [file.path for file in found.outputs if file.problem] == shape.problems
    assert all(file.data or file.url or file.problem for file in found.outputs)
    assert all(file.problem and file.is_mention for file in found.mentions)


@pytest.mark.parametrize("provider", [*HOSTS, "responses"])
def test_a_failure_names_no_files(provider: str) -> None:
    """Files of a failed answer are previews."""
    shapes = [shape for shape in SHAPES if shape.provider == provider]

    assert len(SHAPES) >= 80
    for shape in shapes:
        found = report(provider, shape.part, "failed")
        assert (found.status, found.outputs, found.mentions) == ("failed", (), ())


def test_only_a_file_on_another_host_is_foreign() -> None:
    """A real output that is broken makes its job partial; a file of somebody else does not."""
    mixed = [FOREIGN, "gs://bucket/a.png", "http://replicate.delivery/a.png", "data:image/png;base64,a*b",
             "https://replicate.delivery:8443/a.png", "https://replicate.delivery/\x00"]  # fmt: skip

    assert [file.is_foreign for file in report("replicate", mixed).outputs] == [True, True, False, False, True, False]


def test_an_address_of_moorage_is_no_output() -> None:
    """A model repeats the signed URL of its input."""
    (mention,) = report("replicate", ["https://us.example/uploads/a.png"]).mentions

    assert mention.problem == "is an address of moorage"


# --- the property -----------------------------------------------------------------------------------------------

_REQUEST = ("input", "webhook_url", "prompt", "input_image")
_KEYS = st.sampled_from([*_REQUEST, "url", "image", "images", "0", "a b", "result", "content", "é"])
_KINDS = ("url", "spaces", "foreign", "data", "base64", "text", "bucket")


def reference(host: str, kind: str, number: int) -> str:
    """Return a file reference that differs by its number."""
    data = base64.b64encode(PNG + bytes([number])).decode()
    texts = {
        "url": f"https://{host}/{number}.png?sig=%7e",
        "spaces": f" \n https://{host}/padded/{number}\t",
        "foreign": f"https://cdn.evil.example/{number}.png",
        "data": f"data:image/png;base64,{data}",
        "base64": data,
        "text": f"see https://{host}/in-text/{number}, please",
        "bucket": f"s3://bucket/{number}.png",
    }
    return texts[kind]


_LEAVES = (
    st.tuples(st.sampled_from(_KINDS), st.integers(0, 9)) | st.none() | st.integers() | st.text("ab :/", max_size=5)
)
_TREES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4), max_leaves=25
)


def build(tree: Any, host: str) -> Any:
    if isinstance(tree, tuple):
        return reference(host, *tree)
    if isinstance(tree, dict):
        return {key: build(item, host) for key, item in tree.items()}
    return [build(item, host) for item in tree] if isinstance(tree, list) else tree


def named(host: str, kind: str, number: int) -> str:
    """Return the URL of a reference, or its text."""
    return reference(host, kind, number).strip().removeprefix("see ").removesuffix(", please")


def leaves(tree: Any, is_request: bool = False) -> set[tuple[str, int, bool]]:
    """Return kind, number and whether it is part of a repeated request, of every reference in a tree."""
    if isinstance(tree, tuple):
        return {(*tree, is_request)}
    if isinstance(tree, dict):
        return {leaf for key, item in tree.items() for leaf in leaves(item, is_request or key in _REQUEST)}
    return {leaf for item in tree for leaf in leaves(item, is_request)} if isinstance(tree, list) else set()


@pytest.mark.parametrize("provider", HOSTS)
@unhurried
@given(tree=_TREES)
def test_n_files_are_n_outputs_or_each_has_its_reason(provider: str, tree: Any) -> None:
    """At any depth, of any type, however often each is named."""
    host, wanted = HOSTS[provider], leaves(tree)
    part = build(tree, host)

    found = report(provider, {"output": part} if provider == "standard" else part)

    outputs = [file.url or file.data for file in found.outputs]
    requested = {named(host, kind, number) for kind, number, is_request in wanted if is_request and kind != "text"}
    wanted = {(kind, number) for kind, number, _ in wanted}
    files = {leaf for leaf in wanted if leaf[0] != "text" and named(host, *leaf) not in requested}
    assert len(outputs) == len(files)
    assert set(outputs) == {decoded(host, *leaf) for leaf in files}
    mentioned = {file.url for file in found.mentions}
    urls = {named(host, *leaf) for leaf in wanted - files if leaf[0] not in ("data", "base64")}
    assert urls <= mentioned
    paths = [file.path for file in found.outputs]
    assert len(paths) == len(set(paths))
    assert all(file.problem for file in found.mentions)


def decoded(host: str, kind: str, number: int) -> Any:
    """Return the URL of a reference, or the bytes of a file that is inline."""
    return PNG + bytes([number]) if kind in ("data", "base64") else reference(host, kind, number).strip()
