"""
Models of Replicate: their names in fallback chains, their submission URLs and input schemas.

Sources: replicate-python (model.py, version.py, deployment.py, prediction.py), read 2026-11.
"""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from moorage.errors import ProviderRefused, ProviderUnavailable
from moorage.text import to_storable
from providers import endpoints, input_schemas, json_fields
from providers.api_client import ApiClient

_VERSION: Final = re.compile(r"[0-9a-f]{64}")
_SCHEMA_BYTES: Final = 4 * 2**20
_DEPLOYMENTS: Final = "deployments"
_CONCURRENT_REQUESTS: Final = 4


@dataclass(frozen=True, slots=True)
class ModelName:
    path: str | None  # "owner/name", "deployments/owner/name"; None for a bare version
    version: str | None  # 64 hexadecimal digits; None for the latest

    @classmethod
    def parse(cls, text: str) -> "ModelName":
        """Parse "owner/name", "owner/name:version", "version" or "deployments/owner/name"; raises ProviderRefused."""
        if _VERSION.fullmatch(text):
            return cls(None, text)
        path, colon, version = text.partition(":")
        segments = endpoints.split_model_name(path)
        is_deployment = segments[0] == _DEPLOYMENTS and len(segments) == 3
        if not is_deployment and (len(segments) != 2 or segments[0] == _DEPLOYMENTS):
            raise ProviderRefused(f"{to_storable(text, 100)!r} is not a Replicate model: write it as owner/name")
        if colon and (is_deployment or not _VERSION.fullmatch(version)):
            raise ProviderRefused(
                f"{to_storable(text, 100)!r} has no valid version: write owner/name:VERSION, 64 digits"
            )
        return cls("/".join(segments), version or None)

    @property
    def is_deployment(self) -> bool:
        return self.path is not None and self.path.startswith(f"{_DEPLOYMENTS}/")

    def submit_path(self) -> str:
        """Return the path for submissions: shared for versions, specific for a model or deployment."""
        if self.version is not None or self.path is None:
            return "/v1/predictions"
        return f"/v1/{self.path}/predictions" if self.is_deployment else f"/v1/models/{self.path}/predictions"

    def version_field(self) -> dict[str, str]:
        return {} if self.version is None else {"version": self.version}

    def schema_path(self) -> str | None:
        if self.path is None or self.is_deployment:
            return None
        return f"/v1/models/{self.path}" + (f"/versions/{self.version}" if self.version else "")


def describe_models(api: ApiClient, api_url: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the named models that Replicate knows, in this order, by up to four requests at once."""
    with ThreadPoolExecutor(_CONCURRENT_REQUESTS) as executor:
        models = list(executor.map(lambda name: _describe_model(api, api_url, name), names))
    return [model for model in models if model is not None]


def get_input_schema(api: ApiClient, api_url: str, name: ModelName) -> dict[str, Any] | None:
    """Return the JSON Schema of a model's input; raises as `Provider.get_input_schema`."""
    path = name.schema_path()
    return None if path is None else _extract_schema(_fetch_model(api, f"{api_url}{path}"))


def get_output_schema(api: ApiClient, api_url: str, model: str) -> dict[str, Any] | None:
    """Return the JSON Schema of the output of a model's latest version; raises as `get_input_schema`."""
    path = ModelName.parse(model).schema_path()
    return None if path is None else _extract_schema(_fetch_model(api, f"{api_url}{path}"), "Output")


def _describe_model(api: ApiClient, api_url: str, model: str) -> dict[str, Any] | None:
    try:
        path = ModelName.parse(model).schema_path()
        fields = None if path is None else _fetch_model(api, f"{api_url}{path}")
    except ProviderRefused as error:
        if error.facts.get("status") in (404, 410):
            return None
        raise
    schema = None if fields is None else _extract_schema(fields)
    if fields is None or schema is None:
        return None
    image_field = input_schemas.find_image_field(schema)
    return {
        "name": model,
        "description": json_fields.optional_text(fields.get("description")),
        "kind": "video" if input_schemas.is_video_schema(schema) else "image",
        "accepts": [] if image_field is None else ["image"],
        "picture_field": image_field,
    }


def _fetch_model(api: ApiClient, url: str) -> dict[str, Any]:
    body = api.get(url, max_bytes=_SCHEMA_BYTES)
    with json_fields.translate_malformed(ProviderUnavailable, "Replicate returned a malformed model"):
        return json_fields.parse_json_object(body)


def _extract_schema(fields: Mapping[str, Any], name: str = "Input") -> dict[str, Any] | None:
    version = fields.get("latest_version", fields)
    document = version.get("openapi_schema") if isinstance(version, dict) else None
    if document is None:
        return None
    with json_fields.translate_malformed(ProviderUnavailable, "Replicate returned a malformed schema"):
        return input_schemas.extract_schema(document, name)
