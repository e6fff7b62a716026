"""
Settings from the environment, `.env` and `..._FILE` twins. A wrong value or an unknown `MOORAGE_` name is refused.

Established names first (`DATABASE_URL`, `AWS_REGION`, ...), ours as `MOORAGE_...`.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AliasChoices, Field, PrivateAttr, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from moorage import logs, settings_sources
from moorage.constants import DEVELOPER_PREFIX, Constants
from moorage.errors import ConfigError
from moorage.formats import ACCEPT
from moorage.setting_types import (
    IN_FLIGHT,
    RETENTION_DAYS,
    Accept,
    Addresses,
    BrokerUrl,
    Count,
    HttpUrl,
    HttpUrls,
    InFlight,
    ListenAddress,
    LogFormat,
    LogLevel,
    LongSecret,
    Names,
    OwnerLimits,
    Positive,
    PostgresUrl,
    RetentionDays,
    Secrets,
    is_same_place,
)

log = logs.get_logger(__name__)

S = TypeVar("S", bound=BaseSettings)

# Offered by GET /v1/models; their inputs and outputs are read from their schemas.
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


def env_names(*names: str) -> Any:
    return AliasChoices(*names)


class Settings(BaseSettings):
    """Every setting with its default. Field `x` without an alias is `MOORAGE_X` in the environment."""

    model_config = SettingsConfigDict(
        env_prefix="MOORAGE_",
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
        case_sensitive=False,
        populate_by_name=True,
    )

    env: Literal["development", "production"] = "development"
    log_level: LogLevel = Field("INFO", validation_alias=env_names("LOG_LEVEL"))
    log_format: LogFormat = Field("console", validation_alias=env_names("LOG_FORMAT"))

    # --- servers
    database_url: PostgresUrl = Field(validation_alias=env_names("DATABASE_URL"))
    broker_url: BrokerUrl = Field(validation_alias=env_names("CELERY_BROKER_URL", "REDIS_URL"))
    s3_endpoint_url: HttpUrl | None = Field(None, validation_alias=env_names("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    s3_public_endpoint_url: HttpUrl | None = Field(None, validation_alias=env_names("S3_PUBLIC_ENDPOINT_URL"))
    s3_public_bucket: str = Field("moorage-public", validation_alias=env_names("S3_PUBLIC_BUCKET"))
    s3_private_bucket: str = Field("moorage-private", validation_alias=env_names("S3_PRIVATE_BUCKET"))
    s3_addressing_style: Literal["auto", "path", "virtual"] = Field(
        "auto", validation_alias=env_names("S3_ADDRESSING_STYLE")
    )
    s3_checksums: Literal["auto", "sha256", "md5", "none"] = Field("auto", validation_alias=env_names("S3_CHECKSUMS"))
    aws_region: str = Field("us-east-1", validation_alias=env_names("AWS_REGION", "AWS_DEFAULT_REGION"))
    aws_access_key_id: str | None = Field(None, validation_alias=env_names("AWS_ACCESS_KEY_ID"))
    aws_secret_access_key: SecretStr | None = Field(None, validation_alias=env_names("AWS_SECRET_ACCESS_KEY"))
    aws_session_token: SecretStr | None = Field(
        None, validation_alias=env_names("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
    )
    manage_buckets: bool = True  # create missing buckets and the public one's policy; off: an operator does
    asset_base_url: HttpUrl | None = Field(None, validation_alias=env_names("ASSET_BASE_URL"))

    # --- HTTP
    public_url: HttpUrl = Field("http://127.0.0.1:8000", validation_alias=env_names("PUBLIC_URL"))
    metrics_address: ListenAddress = "127.0.0.1:9464"  # of the receiver's /metrics; off: none
    api_token: SecretStr | None = None
    assets: Literal["redirect", "signed", "stream"] = "redirect"  # to the public bucket or a signed URL, or the bytes
    egress_allow: Addresses = ()  # private ADDRESS:PORT that downloads may use; refused in production
    allow_unsigned: Names = ()  # providers whose webhooks are accepted without a signature

    # --- providers
    replicate_webhook_secret: Secrets = Field((), validation_alias=env_names("REPLICATE_WEBHOOK_SECRET"))
    replicate_api_token: SecretStr | None = Field(None, validation_alias=env_names("REPLICATE_API_TOKEN"))
    replicate_api_url: HttpUrl = Field("https://api.replicate.com", validation_alias=env_names("REPLICATE_API_URL"))
    replicate_output_hosts: Names = Field(
        ("replicate.delivery", "*.replicate.delivery", "api.replicate.com"),
        validation_alias=env_names("REPLICATE_OUTPUT_HOSTS"),
    )
    replicate_models: Names = Field(REPLICATE_MODELS, validation_alias=env_names("REPLICATE_MODELS"))
    fal_key: SecretStr | None = Field(None, validation_alias=env_names("FAL_KEY"))
    fal_user_id: Names = Field((), validation_alias=env_names("FAL_USER_ID"))  # accounts whose webhooks are accepted
    fal_queue_url: HttpUrl = Field("https://queue.fal.run", validation_alias=env_names("FAL_QUEUE_URL"))
    fal_output_hosts: Names = Field(("fal.media", "*.fal.media"), validation_alias=env_names("FAL_OUTPUT_HOSTS"))
    fal_models: Names = Field(FAL_MODELS, validation_alias=env_names("FAL_MODELS"))
    openai_webhook_secret: Secrets = Field((), validation_alias=env_names("OPENAI_WEBHOOK_SECRET"))
    openai_api_key: SecretStr | None = Field(None, validation_alias=env_names("OPENAI_API_KEY"))
    openai_api_url: HttpUrl = Field("https://api.openai.com", validation_alias=env_names("OPENAI_API_URL"))
    openai_output_hosts: Names = Field((), validation_alias=env_names("OPENAI_OUTPUT_HOSTS"))
    openai_models: Names = Field(("gpt-image-1",), validation_alias=env_names("OPENAI_MODELS"))
    standard_webhook_secret: Secrets = Field((), validation_alias=env_names("STANDARD_WEBHOOK_SECRET"))
    standard_output_hosts: Names = Field((), validation_alias=env_names("STANDARD_OUTPUT_HOSTS"))
    providers_file: Path | None = None  # declares further providers, in TOML
    keep_hosts: Names = ()

    # --- receiver
    webhook_max_bytes: Count = 16 * 2**20

    # --- downloads and media
    download_total_seconds: Positive = 300.0
    image_max_bytes: Count = 200_000_000
    image_max_pixels: Count = 2**27  # of one frame
    animation_max_pixels: Count = 1_000_000_000  # of all frames
    decoder_memory_bytes: Count = 2_500_000_000  # address space of the process that decodes large images
    video_max_bytes: Count = 500_000_000  # of files that are no images, too
    accept: Accept = ACCEPT  # formats of outputs, and as upload:FORMAT those of uploads
    thumbnail_px: Count = 400

    # --- submitting
    in_flight: InFlight = IN_FLIGHT  # predictions that moorage submitted, at once, by provider or PROVIDER:TEXT
    owner_limits: OwnerLimits = {}  # of each owner
    image_seconds: Positive = 60.0  # default time limit of a fallback entry
    video_seconds: Positive = 600.0
    placeholder_file: Path | None = None  # an image; without it one of the requested size is generated

    # --- uploads
    upload_max_bytes: Count = 50_000_000

    # --- owner tokens, for browsers
    owner_token_secret: LongSecret | None = None  # without it the key is derived from MOORAGE_API_TOKEN
    owner_token_seconds: Annotated[float, Field(ge=1, le=86400)] = 3600.0

    max_streams: Count = 5000  # open event streams in one process

    # --- notifications: webhooks to the application
    notify_urls: HttpUrls = Field((), validation_alias=env_names("MOORAGE_NOTIFY_URL"))  # the first is the default
    notify_secret: Secrets = ()  # whsec_...; several during rotation, each signs

    # --- work
    max_errors: Count = 12
    lease_seconds: Annotated[float, Field(ge=3, allow_inf_nan=False)] = 30.0
    stop_grace_seconds: Positive = 20.0
    partial: Literal["keep", "discard"] = "keep"
    job_deadline_seconds: Positive = 3600.0
    unmatched_seconds: Positive = 86400.0
    adopt: bool = False  # create a job for a delivery of an unregistered prediction

    # --- what is removed, and when. Days of 0: never
    maintenance_cron: str = "17 3 * * *"  # UTC, or "off"
    quarantine_seconds: Positive = 7 * 86400.0  # of refused files and orphans, in the private bucket
    retention_days: RetentionDays = RETENTION_DAYS
    alive_file: str | None = None  # touched every few seconds by a running worker or beat, for health checks

    _constants: Constants = PrivateAttr(default_factory=Constants.model_construct)

    @property
    def constants(self) -> Constants:
        """Values that no operator changes; `load_settings()` applies the developer overrides."""
        return self._constants

    def with_constants(self, **changes: Any) -> "Settings":
        """Return a copy with other constants, for tests."""
        copy = self.model_copy()
        copy._constants = self._constants.model_copy(update=changes)
        return copy

    @model_validator(mode="after")
    def _s3_keys(self) -> "Settings":
        are_set = {bool(self.aws_access_key_id), bool(self.aws_secret_access_key)}
        if len(are_set) == 2 or (self.aws_session_token and are_set == {False}):
            raise ValueError(
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY belong together, and to AWS_SESSION_TOKEN: write both, or"
                " none for boto3's own search"
            )
        return self

    @model_validator(mode="after")
    def _assets(self) -> "Settings":
        base = self.asset_base_url
        if self.assets == "redirect" and base and is_same_place(base, f"{self.public_url}/v1/assets"):
            raise ValueError(
                "ASSET_BASE_URL is the API's own address, which redirects to it: write the public bucket's address, or"
                " MOORAGE_ASSETS=signed or stream"
            )
        return self

    @model_validator(mode="after")
    def _production(self) -> "Settings":
        if self.env != "production":
            return self
        if self.egress_allow:
            raise ValueError("MOORAGE_EGRESS_ALLOW opens a private address and is refused in production: unset it")
        if self.api_token and len(self.api_token.get_secret_value()) < 32:
            raise ValueError(
                "MOORAGE_API_TOKEN has fewer than 32 characters: write one made with `openssl rand -hex 32`"
            )
        if self.replicate_api_token and not self.replicate_webhook_secret and "replicate" not in self.allow_unsigned:
            raise ValueError(
                "REPLICATE_API_TOKEN is set but REPLICATE_WEBHOOK_SECRET is not: write the secret, or name replicate in"
                " MOORAGE_ALLOW_UNSIGNED"
            )
        if self.fal_key and not self.fal_user_id:
            raise ValueError(
                "FAL_KEY is set but FAL_USER_ID is not, and fal signs the webhooks of all users with one key: write"
                " your user's id"
            )
        if self.notify_urls and not self.notify_secret:
            raise ValueError(
                "MOORAGE_NOTIFY_URL is set but MOORAGE_NOTIFY_SECRET is not: write whsec_ and the base64 text of 24"
                " random bytes or more"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (the signature is pydantic's)
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the `..._FILE` twins between the environment and `.env`."""
        return init_settings, env_settings, settings_sources.FileTwins(settings_cls), dotenv_settings


def env_names_by_field() -> dict[str, list[str]]:
    """Return the environment names of every field, the preferred one first."""
    return {name: settings_sources.names_of(name, field) for name, field in Settings.model_fields.items()}


def load_settings(**overrides: Any) -> Settings:
    """Read the settings. Raises ConfigError with a line for each wrong or missing value and unknown `MOORAGE_` name."""
    known = [name for choices in env_names_by_field().values() for name in choices]
    problems = settings_sources.unknown_names(known)
    dotenv = {"_env_file": settings_sources.dotenv_path()}
    constants = _read(Constants, dotenv, problems)
    settings = _read(Settings, {**dotenv, **overrides}, problems)
    if settings and settings.env == "production" and constants and constants.model_fields_set:
        names = ", ".join(f"{DEVELOPER_PREFIX}{field.upper()}" for field in sorted(constants.model_fields_set))
        problems.append(f"{names}: developer overrides are refused in production: unset them")
    if problems or constants is None or settings is None:
        raise ConfigError("\n".join(problems))
    settings._constants = constants
    for name, similar in settings_sources.similar_names(known).items():
        log.warning("setting.ignored", name=name, reason=f"not a setting: did you mean {similar}?")
    return settings


def _read(kind: type[S], values: Mapping[str, Any], problems: list[str]) -> S | None:
    try:
        return kind(**values)
    except ValidationError as error:
        problems += [settings_sources.explain(kind, item) for item in error.errors()]
        return None


@functools.cache
def get_settings() -> Settings:
    return load_settings()
