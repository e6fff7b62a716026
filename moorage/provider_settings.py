"""The settings of the providers: secrets, tokens, addresses and hosts of files, under their usual names."""

from typing import Annotated, Any, Final

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode

Names = Annotated[tuple[str, ...], NoDecode]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode]

# fal's documentation names the first, older pages the second: the first that answers counts.
FAL_JWKS_URLS: Final = (
    "https://rest.fal.ai/.well-known/jwks.json",
    "https://rest.alpha.fal.ai/.well-known/jwks.json",
)

# Offered by GET /v1/models; what each makes and takes is read from its schema.
REPLICATE_MODELS: Final = (
    "black-forest-labs/flux-schnell",
    "black-forest-labs/flux-dev",
    "black-forest-labs/flux-kontext-pro",
    "google/nano-banana",
    "minimax/video-01",
    "kwaivgi/kling-v2.1",
)
FAL_MODELS: Final = (
    "fal-ai/flux/schnell",
    "fal-ai/flux/dev",
    "fal-ai/flux/dev/image-to-image",
    "fal-ai/minimax/video-01",
    "fal-ai/minimax/video-01/image-to-video",
)


def named(*names: str) -> Any:
    """Return the names of a setting in the environment, the preferred one first."""
    return AliasChoices(*names)


def split(value: Any) -> Any:
    """Return the parts of a text between commas; what is no text stays as it is."""
    return tuple(p.strip() for p in value.split(",") if p.strip()) if isinstance(value, str) else value


def http_url(value: str | None) -> str | None:
    """Return a URL without slashes at its end; raises ValueError that says what to write."""
    if value is not None and not value.startswith(("http://", "https://")):
        raise ValueError("write a URL that starts with https:// (or http:// on a private network)")
    return value.rstrip("/") if value else value


class ProviderSettings(BaseSettings):
    """What a provider needs to be listened to and asked; each name stands for one provider."""

    replicate_webhook_secret: Secrets = Field((), validation_alias=named("REPLICATE_WEBHOOK_SECRET"))
    replicate_api_token: SecretStr | None = Field(None, validation_alias=named("REPLICATE_API_TOKEN"))
    replicate_api_url: str = Field("https://api.replicate.com", validation_alias=named("REPLICATE_API_URL"))
    replicate_output_hosts: Names = Field(
        ("replicate.delivery", "*.replicate.delivery", "api.replicate.com"),
        validation_alias=named("REPLICATE_OUTPUT_HOSTS"),
    )
    replicate_models: Names = Field(REPLICATE_MODELS, validation_alias=named("REPLICATE_MODELS"))
    fal_key: SecretStr | None = Field(None, validation_alias=named("FAL_KEY"))
    fal_user_id: Names = Field((), validation_alias=named("FAL_USER_ID"))  # whose webhooks are taken
    fal_jwks_url: Names = Field(FAL_JWKS_URLS, validation_alias=named("FAL_JWKS_URL"))
    fal_queue_url: str = Field("https://queue.fal.run", validation_alias=named("FAL_QUEUE_URL"))
    fal_output_hosts: Names = Field(("fal.media", "*.fal.media"), validation_alias=named("FAL_OUTPUT_HOSTS"))
    fal_models: Names = Field(FAL_MODELS, validation_alias=named("FAL_MODELS"))
    openai_webhook_secret: Secrets = Field((), validation_alias=named("OPENAI_WEBHOOK_SECRET"))
    openai_api_key: SecretStr | None = Field(None, validation_alias=named("OPENAI_API_KEY"))
    openai_api_url: str = Field("https://api.openai.com", validation_alias=named("OPENAI_API_URL"))
    openai_output_hosts: Names = Field((), validation_alias=named("OPENAI_OUTPUT_HOSTS"))
    openai_models: Names = Field(("gpt-image-1",), validation_alias=named("OPENAI_MODELS"))
    standard_webhook_secret: Secrets = Field((), validation_alias=named("STANDARD_WEBHOOK_SECRET"))
    standard_output_hosts: Names = Field((), validation_alias=named("STANDARD_OUTPUT_HOSTS"))

    @field_validator(
        "replicate_webhook_secret",
        "replicate_output_hosts",
        "replicate_models",
        "fal_user_id",
        "fal_jwks_url",
        "fal_output_hosts",
        "fal_models",
        "openai_webhook_secret",
        "openai_output_hosts",
        "openai_models",
        "standard_webhook_secret",
        "standard_output_hosts",
        mode="before",
    )
    @classmethod
    def _split_provider_names(cls, value: Any) -> Any:
        return split(value)

    @field_validator("replicate_api_url", "fal_queue_url", "openai_api_url")
    @classmethod
    def _is_api_url(cls, value: str) -> str:
        return http_url(value) or value
