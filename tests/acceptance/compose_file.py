"""docker-compose.yml as Compose reads it: anchors, interpolation, one service with its command and environment."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
OURS = ("migrate", "receiver", "worker-quick", "worker-sweeps", "worker-keep", "beat", "flower")


class Missing(Exception):
    """A required variable is not set; the message is the file's."""


@dataclass(frozen=True)
class Service:
    """What a container of ours is started with."""

    command: list[str]
    environment: dict[str, str]
    health: list[str]  # CMD or CMD-SHELL and its arguments; empty: none
    reads_dotenv: bool


def load() -> dict[str, Any]:
    """Return the file as it stands, with its anchors merged."""
    read: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return read


def service(name: str, variables: Mapping[str, str]) -> Service:
    """Return a service with all variables replaced. Raises Missing."""
    spec = interpolated(load()["services"][name], variables)
    health = spec.get("healthcheck", {}).get("test", [])
    return Service(spec["command"], spec["environment"], health, "env_file" in spec)


def interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    """Return a value of the file with every ${NAME...} in it replaced, as deep as it goes."""
    if isinstance(value, dict):
        return {key: interpolated(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item, variables) for item in value]
    return _replace(value, variables) if isinstance(value, str) else value


def _replace(text: str, variables: Mapping[str, str]) -> str:
    done = ""
    while "$" in text:
        before, _, rest = text.partition("$")
        done += before
        if rest.startswith("$"):
            done, text = f"{done}$", rest[1:]
        else:
            end = _end_of_braces(rest)
            done, text = done + _value(rest[1:end], variables), rest[end + 1 :]
    return done + text


def _end_of_braces(text: str) -> int:
    """Return where the brace that text begins with is closed; a default may hold others."""
    depth = 0
    for at, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return at
    raise ValueError(f"not a variable: ${text}")


def _value(inside: str, variables: Mapping[str, str]) -> str:
    name, _, rest = inside.partition(":")
    if variables.get(name):
        return variables[name]
    if rest.startswith("-"):
        return _replace(rest[1:], variables)
    raise Missing(f"{name}: {rest.removeprefix('?')}")
