"""The settings of what moorage does for applications: submitting, uploads, tokens for browsers, webhooks out."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from moorage.provider_settings import ProviderSettings, Secrets, http_url, split

Some = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LifeSettings(ProviderSettings):
    """Each field `x` is `MOORAGE_X` in the environment."""

    # --- submitting: how many predictions of a provider may be at work at once
    submit_concurrency_replicate: Some = 10
    submit_concurrency_fal: Some = 10
    submit_concurrency_openai: Some = 10
    image_seconds: Seconds = 60.0  # how long an entry of a chain is waited for, where it does not say so itself
    video_seconds: Seconds = 600.0
    placeholder_file: Path | None = None  # a picture; without it one of the right size is made

    # --- uploads
    upload_max_bytes: Some = 50_000_000

    # --- owner tokens, for browsers
    owner_token_secret: SecretStr | None = None  # without it they are signed with a key made from MOORAGE_API_TOKEN
    owner_token_seconds: Annotated[float, Field(ge=1, le=86400)] = 3600.0

    # --- webhooks out: where the application is told that a job has ended
    notify_url: str | None = None
    notify_secret: Secrets = ()  # whsec_...; several while one is exchanged: each signs

    @field_validator("owner_token_secret")
    @classmethod
    def _is_long(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 32:
            raise ValueError("has fewer than 32 characters: write one made with `openssl rand -hex 32`")
        return value

    @field_validator("notify_url")
    @classmethod
    def _is_notify_url(cls, value: str | None) -> str | None:
        return http_url(value)

    @field_validator("notify_secret", mode="before")
    @classmethod
    def _split_notify_secret(cls, value: object) -> object:
        return split(value)
