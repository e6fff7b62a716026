"""What a model's output schema says about a place, and what follows for the files there."""

import pytest

from moorage.urls import HostAllowlist
from providers import output_files, output_schemas

URI = {"type": "string", "format": "uri"}
TEXT = {"type": "string"}
SCHEMA = {
    "type": "object",
    "properties": {
        "images": {"type": "array", "items": URI},
        "input_image": URI,
        "caption": TEXT,
        "mask": {"anyOf": [URI, {"type": "null"}]},
        "note": {"anyOf": [TEXT, TEXT]},
        "a b": {"type": ["string", "null"], "format": "uri"},
        "any": {},
        "nested": {"additionalProperties": {"type": "array", "items": {"allOf": [URI]}}},
    },
}
HOSTS = HostAllowlist(("replicate.delivery",), (), setting="REPLICATE_OUTPUT_HOSTS")


@pytest.mark.parametrize(
    ("path", "declared"),
    [
        ("output.images[0]", True),
        ("output.images", None),
        ("output.images[0].url", None),
        ("output.input_image", True),
        ("output.caption", False),
        ("output.mask", True),
        ("output.note", False),
        ('output["a b"]', True),
        ("output.any", None),
        ("output.nested.x[3]", True),
        ("output.other", None),
        ("output", None),
        ("output.images~0123", None),
    ],
)  # fmt: skip
def test_a_place_is_a_file_or_a_text_or_not_declared(path, declared):
    """Only what the schema says decides."""
    assert output_schemas.build_check(SCHEMA, "output")(path) is declared


@pytest.mark.parametrize("schema", [URI, {"type": "array", "items": URI}, {"type": "array", "items": "x"}, {"$ref": 1}])
def test_any_schema_and_path_are_answered(schema):
    """Schemas come from outside."""
    check = output_schemas.build_check(schema, "output")

    assert [check(path) for path in ("output", 'output["\\u00e9"]', "output[7]", "other", "")]


def test_the_schema_decides_what_key_and_host_leave_open():
    """A file under the key of an input is one; a URL of another host in a text field is none."""
    value = {
        "images": ["https://cdn.evil.example/a.png"],
        "input_image": "https://replicate.delivery/b.png",
        "caption": "https://docs.example/",
        "any": "https://cdn.evil.example/c.png",
    }

    found = output_files.extract_files(value, "output", HOSTS, (), output_schemas.build_check(SCHEMA, "output"))

    assert [(file.path, file.is_foreign) for file in found.outputs] == [
        ("output.images[0]", False), ("output.input_image", False), ("output.any", True),
    ]  # fmt: skip
    assert [(file.path, file.problem) for file in found.mentions] == [
        ("output.caption", "is a text by the model's output schema")
    ]
