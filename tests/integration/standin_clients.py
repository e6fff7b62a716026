"""The product's provider clients, configured for a stand-in."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import providers
from moorage.provider_types import SubmitRequest
from moorage.settings import Settings
from providers import Provider
from tests.support.standin import Standin

MODELS = {"replicate": "standin/pictures", "fal": "standin/pictures/fast", "openai": "gpt-image-1"}


def build_clients(standin: Standin) -> Mapping[str, Provider]:
    """Return every provider client, with the settings of the stand-in."""
    environment = standin.environment()
    jwks_url = environment.pop("MOORAGE_DEV_FAL_JWKS_URL")
    fields: dict[str, Any] = {name.lower().removeprefix("moorage_"): value for name, value in environment.items()}
    servers = {"database_url": "postgresql://moorage@localhost/moorage", "broker_url": "redis://localhost"}
    return providers.load(Settings(_env_file=None, **servers, **fields).with_constants(fal_jwks_url=(jwks_url,)))


def build_submit_request(
    provider: str, webhook: str | None = "http://127.0.0.1:9/hook?key=k", model: str = "", **fields: Any
) -> SubmitRequest:
    return SubmitRequest(uuid4(), model or MODELS[provider], {"prompt": "a quiet harbour", **fields}, webhook)
