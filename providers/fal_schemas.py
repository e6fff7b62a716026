"""
Schemas of fal's models in their OpenAPI documents, which FAL_OPENAPI locates: a URL or a path with {model}.

Read from a document: the body of POST /MODEL, and of the response to GET .../requests/ID, which is the payload.
"""

import re
from pathlib import Path
from typing import Any, Final

from moorage.errors import ConfigError, ProviderRefused, ProviderUnavailable
from moorage.urls import HostAllowlist
from providers import endpoints, input_schemas, json_fields, output_schemas
from providers.api_client import ApiClient
from providers.output_schemas import Declares

_MAX_BYTES: Final = 4 * 2**20
_RESULT_PATH: Final = r"/.+/requests/\{[^/]+\}"
_SETTING: Final = "FAL_OPENAPI"


class SchemaSource:
    """The documents at `location`; None: there are none."""

    def __init__(self, location: str | None, hosts: HostAllowlist) -> None:
        self._location, self._api = location, ApiClient("fal's schemas", None, max_bytes=_MAX_BYTES)
        if location and "{model}" not in location:
            raise ConfigError(
                f"{_SETTING} has no {{model}}: write https://HOST/PATH/{{model}}, or /PATH/{{model}}.json"
            )
        if location and not location.startswith("/"):
            endpoints.require_secure_url(location.replace("{model}", "m"), hosts, _SETTING)

    def find_input(self, model: str) -> dict[str, Any] | None:
        """Return the schema of a model's input; raises as `Provider.get_input_schema`."""
        return self._find(model, f"/{re.escape(model)}", is_request=True)

    def build_check(self, model: str) -> Declares | None:
        """Return what the output schema says about paths below "payload"; None if there is none."""
        try:
            schema = self._find(model, _RESULT_PATH, is_request=False)
        except (ProviderUnavailable, ProviderRefused):  # it is not known: keys and hosts decide
            return None
        if schema is None:
            return None
        check = output_schemas.build_check(schema, "payload")
        # A file is an object with a text `url`, whatever its format is declared as.
        return lambda path: True if path.endswith(".url") and check(path) is not None else check(path)

    def _find(self, model: str, path: str, *, is_request: bool) -> dict[str, Any] | None:
        body = self._read(model)
        if body is None:
            return None
        with json_fields.translate_malformed(ProviderUnavailable, f"the schema of {model} is malformed"):
            return input_schemas.find_body_schema(json_fields.parse_json_object(body), path, is_request=is_request)

    def _read(self, model: str) -> bytes | None:
        """Return the document of a model with a valid name; None if there is none."""
        if not self._location:
            return None
        place = self._location.replace("{model}", model)
        try:
            return Path(place).read_bytes() if place.startswith("/") else self._api.get(place)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ProviderUnavailable(f"{_SETTING}: {place} cannot be read: {error}") from error
        except ProviderRefused as error:
            if error.facts.get("status") in (404, 410):
                return None
            raise
