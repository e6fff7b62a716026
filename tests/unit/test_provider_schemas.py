"""A model's input as JSON Schema: references put in place, whatever they lead to, and what the fields say of it."""

from typing import Any

import pytest

from moorage.errors import MalformedPayload
from providers import input_schemas
from web.api import job_inputs


def document(wanted: Any, **others: Any) -> dict[str, Any]:
    return {"components": {"schemas": {"Input": wanted, **others}}}


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def test_references_are_resolved_at_any_depth_and_keep_their_siblings():
    """A default beside a reference is the field's own."""
    wanted = {"properties": {"a": {**ref("A"), "default": 2}, "b": {"items": {"allOf": [ref("A")]}}}}

    resolved = input_schemas.extract_schema(document(wanted, A={"enum": [1, 2]}))

    assert resolved["properties"] == {
        "a": {"enum": [1, 2], "default": 2},
        "b": {"items": {"allOf": [{"enum": [1, 2]}]}},
    }


def test_a_reference_to_itself_ends():
    """A tree of folders is such a schema."""
    wanted = {"properties": {"tree": ref("Tree")}}

    resolved = input_schemas.extract_schema(document(wanted, Tree={"items": ref("Tree"), "type": "array"}))

    assert resolved["properties"]["tree"] == {"items": {}, "type": "array"}


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ({"type": "string", "nullable": True}, {"type": ["string", "null"]}),
        ({"enum": ["a"], "type": "string", "nullable": True}, {"enum": ["a", None], "type": ["string", "null"]}),
        ({"type": "string", "nullable": False}, {"type": "string", "nullable": False}),
    ],
)
def test_nullable_becomes_a_type(field, expected):
    """OpenAPI 3.0 has a word of its own for it, which a validator would not know."""
    assert input_schemas.extract_schema(document({"properties": {"a": field}}))["properties"]["a"] == expected


def test_a_field_may_be_called_like_a_keyword():
    """Names of fields are the model's."""
    wanted = {"properties": {"nullable": {"type": "string"}, "$ref": {"type": "string"}}}

    assert input_schemas.extract_schema(document(wanted)) == wanted


@pytest.mark.parametrize(
    "given",
    [
        None, [], {}, {"components": []}, {"components": {"schemas": None}}, document(None), document([]),
        document({"a": ref("Missing")}), document({"a": {"$ref": "https://evil.example/schema"}}),
        document({"a": ref("B")}, B=["no schema"]),
    ],
)  # fmt: skip
def test_a_malformed_document_is_refused(given):
    """Nothing is fetched from elsewhere."""
    with pytest.raises(MalformedPayload):
        input_schemas.extract_schema(given)


def test_references_that_multiply_are_given_up():
    """Thirty of them, each twice in the next, unfold to a billion."""
    others = {f"S{i}": {"anyOf": [ref(f"S{i + 1}"), ref(f"S{i + 1}")]} for i in range(30)}

    with pytest.raises(MalformedPayload, match="unfolds"):
        input_schemas.extract_schema(document(ref("S0"), **others, S30={}))


def test_a_deep_schema_is_given_up():
    """JSON may nest a thousand levels; no input does."""
    deep: dict[str, Any] = {}
    for _ in range(500):
        deep = {"items": deep}

    with pytest.raises(MalformedPayload, match="unfolds"):
        input_schemas.extract_schema(document(deep))


@pytest.mark.parametrize(
    ("properties", "required", "field"),
    [
        ({"prompt": {"type": "string"}}, [], None),
        ({"image": {"type": "string"}}, [], None),
        ({"mask": {"type": "string", "format": "uri"}}, [], None),
        ({"audio": {"format": "uri"}, "start_image": {"format": "uri"}}, [], "start_image"),
        ({"image_input": {"type": "array", "items": {"format": "uri"}}}, [], "image_input"),
        ({"end_image": {"format": "uri"}, "image": {"format": "uri"}}, ["image"], "image"),
        ("none", 3, None),
        ({"image_\ud800": {"format": "uri"}}, [], None),  # cannot be stored in an input, or returned as UTF-8
    ],
)
def test_the_field_of_the_picture_is_found(properties, required, field):
    """A kept variant becomes the input of a video through it."""
    assert input_schemas.find_image_field({"properties": properties, "required": required}) == field


@pytest.mark.parametrize(
    ("names", "is_video"),
    [(["prompt", "width"], False), (["first_frame_image"], True), (["num_frames"], True), (["framework"], False)],
)
def test_a_video_model_has_a_field_for_time(names, is_video):
    """Replicate's schemas do not state the kind of output."""
    assert input_schemas.is_video_schema({"properties": {name: {} for name in names}}) is is_video


@pytest.mark.parametrize(
    ("rule", "sent", "converted"),
    [
        ({"type": "integer"}, "7", 7),
        ({"type": "integer"}, "-7", -7),
        ({"type": "number"}, "0.5", 0.5),
        ({"type": ["number", "null"]}, "3", 3),
        ({"type": "integer"}, "0.5", "0.5"),
        ({"type": "integer"}, "7 ", "7 "),
        ({"type": "number"}, "nan", "nan"),
        ({"type": ["string", "integer"]}, "7", "7"),
        ({"type": "string"}, "7", "7"),
        ({}, "7", "7"),
        (None, "7", "7"),
    ],
)
def test_text_becomes_a_number_only_where_the_schema_has_no_text(rule: Any, sent: str, converted: Any) -> None:
    """A form sends text; what the provider receives is what the schema says."""
    found = job_inputs.convert_numbers({"seed": sent, "prompt": "7"}, {"properties": {"seed": rule}})

    assert found == {"seed": converted, "prompt": "7"}
    assert type(found["seed"]) is type(converted)
