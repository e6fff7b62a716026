"""
Replicate's models: how an entry of a chain names them, where orders for them go, and what they take as input.

Sources: replicate-python (model.py, version.py, deployment.py, prediction.py), read 2026-11.
"""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from moorage.errors import MalformedPayload, ProviderRefused, ProviderUnavailable
from moorage.text import to_storable
from providers import endpoints, input_schemas, json_fields
from providers.api_client import ApiClient

_VERSION: Final = re.compile(r"[0-9a-f]{64}")
_SCHEMA_BYTES: Final = 4 * 2**20
_DEPLOYMENTS: Final = "deployments"
_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class ModelName:
    """
    A model as an entry of a chain names it.

    Args:
        path: "owner/name", "deployments/owner/name", or None where a version stands alone.
        version: 64 hexadecimal digits, or None for the latest.
    """

    path: str | None
    version: str | None

    @classmethod
    def parse(cls, text: str) -> "ModelName":
        """Read "owner/name", "owner/name:version", "version" or "deployments/owner/name"; raises ProviderRefused."""
        if _VERSION.fullmatch(text):
            return cls(None, text)
        path, colon, version = text.partition(":")
        steps = endpoints.split_model_name(path)
        is_deployment = steps[0] == _DEPLOYMENTS and len(steps) == 3
        if not is_deployment and (len(steps) != 2 or steps[0] == _DEPLOYMENTS):
            raise ProviderRefused(f"{to_storable(text, 100)!r} is no model of Replicate's: write it as owner/name")
        if colon and (is_deployment or not _VERSION.fullmatch(version)):
            raise ProviderRefused(f"{to_storable(text, 100)!r} names no version: write owner/name:VERSION, 64 digits")
        return cls("/".join(steps), version or None)

    @property
    def is_deployment(self) -> bool:
        """Return whether it names a deployment."""
        return self.path is not None and self.path.startswith(f"{_DEPLOYMENTS}/")

    def submit_path(self) -> str:
        """Return where orders are posted: a version to all predictions, a model or deployment to its own."""
        if self.version is not None or self.path is None:
            return "/v1/predictions"
        return f"/v1/{self.path}/predictions" if self.is_deployment else f"/v1/models/{self.path}/predictions"

    def version_field(self) -> dict[str, str]:
        """Return the field of an order that names the version, where it does."""
        return {} if self.version is None else {"version": self.version}

    def schema_path(self) -> str | None:
        """Return where the model is described; None where only its version or its deployment is known."""
        if self.path is None or self.is_deployment:
            return None
        return f"/v1/models/{self.path}" + (f"/versions/{self.version}" if self.version else "")


def describe_models(api: ApiClient, api_url: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """
    Return the named models as `Provider.models` lists them, in this order, those that Replicate does not know left out.

    Four are asked for at a time: whoever waits for the list waits for all of them.
    """
    with ThreadPoolExecutor(_AT_ONCE) as executor:
        described = list(executor.map(lambda name: _offered(api, api_url, name), names))
    return [one for one in described if one is not None]


def get_input_schema(api: ApiClient, api_url: str, name: ModelName) -> dict[str, Any] | None:
    """
    Return the JSON Schema of a model's input; None where it is not published.

    Raises:
        ProviderUnavailable: it cannot be had now, or cannot be read.
        ProviderRefused: there is no such model.
    """
    path = name.schema_path()
    return None if path is None else _input_schema(_described(api, f"{api_url}{path}"))


def _offered(api: ApiClient, api_url: str, model: str) -> dict[str, Any] | None:
    try:
        path = ModelName.parse(model).schema_path()
        described = None if path is None else _described(api, f"{api_url}{path}")
    except ProviderRefused as error:
        if error.facts.get("status") in (404, 410):
            return None
        raise
    wanted = None if described is None else _input_schema(described)
    if described is None or wanted is None:
        return None
    field = input_schemas.find_image_field(wanted)
    return {
        "name": model,
        "description": json_fields.optional_text(described.get("description")),
        "kind": "video" if input_schemas.is_video_schema(wanted) else "image",
        "accepts": [] if field is None else ["image"],
        "picture_field": field,
    }


def _described(api: ApiClient, url: str) -> dict[str, Any]:
    body = api.get(url, max_bytes=_SCHEMA_BYTES)
    try:
        return json_fields.parse_json_object(body)
    except MalformedPayload as error:
        raise ProviderUnavailable(f"Replicate answered 200 with what is no model: {error}") from error


def _input_schema(described: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the input of a model's latest version, or of a version itself."""
    version = described.get("latest_version", described)
    document = version.get("openapi_schema") if isinstance(version, dict) else None
    if document is None:
        return None
    try:
        return input_schemas.extract_input_schema(document)
    except MalformedPayload as error:
        raise ProviderUnavailable(
            f"Replicate describes a model's input in a way that cannot be read: {error}"
        ) from error
