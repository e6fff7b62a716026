"""What a model's output schema says about a place in its output; pure."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

Declares = Callable[[str], bool | None]  # of a path: a file, another text, or nothing is said about it
_STEP: Final = re.compile(r"\.([A-Za-z_][A-Za-z0-9_]*)|\[([0-9]+)\]|\[(\"(?:[^\"\\]|\\.)*\")\]")
_CHOICES: Final = ("anyOf", "oneOf", "allOf")


def say_nothing(_path: str) -> bool | None:
    return None


def build_check(schema: Mapping[str, Any], root: str) -> Declares:
    """Return a function that tells of a path below `root` ("output.images[0]") whether a file is declared there."""
    return lambda path: _declares_file(schema, path[len(root) :])


def _declares_file(schema: Any, path: str) -> bool | None:
    if not isinstance(schema, dict):
        return None
    answers = [_declares_file(choice, path) for name in _CHOICES for choice in _list(schema.get(name))]
    if True in answers or (answers and None not in answers):
        return True in answers
    if not path:
        is_text = schema.get("type") in ("string", ["string", "null"]) and "format" not in schema
        return True if schema.get("format") == "uri" else False if is_text else None
    step = _STEP.match(path)
    if step is None:  # shortened, or not below the root
        return None
    if step[2] is not None:
        child = schema.get("items")
    else:
        key, fields = step[1] or json.loads(step[3]), schema.get("properties")
        child = (fields if isinstance(fields, dict) else {}).get(key, schema.get("additionalProperties"))
    return _declares_file(child, path[step.end() :])


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
