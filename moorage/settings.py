"""
Settings from the environment, `.env` and `..._FILE` twins. A wrong value or an unknown `MOORAGE_` name is refused.

Established names first (`DATABASE_URL`, `AWS_REGION`, ...), ours as `MOORAGE_...`.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AliasGenerator, Field, PrivateAttr, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from moorage import logs, settings_sources
from moorage import setting_types as types
from moorage.errors import ConfigError
from moorage.formats import ACCEPT
from moorage.settings_sources import DEVELOPER_PREFIX

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


class Constants(BaseSettings):
    """
    Values that no operator changes. Field `x` is overridden by `MOORAGE_DEV_X` (CONTRIBUTING.md).

    Tests, the demo and the drill shorten waits with it.
    """

    model_config = SettingsConfigDict(
        env_prefix=DEVELOPER_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True, case_sensitive=False
    )

    # --- receiver
    bytes_in_flight: types.Count = 128 * 2**20  # webhook bodies in memory at once; above: 503
    answer_seconds: types.Positive = 3.0  # a webhook that is not committed by then: 503

    # --- downloads
    download_connect_seconds: types.Positive = 5.0
    download_idle_seconds: types.Positive = 15.0  # without a byte
    download_min_bytes_per_second: types.Count = 50_000  # on average, after 10 s
    download_max_redirects: Annotated[int, Field(ge=0)] = 5

    # --- retries
    wait_base_seconds: types.Positive = 2.0  # a retry waits a random fraction of base * 2**attempt ...
    wait_cap_seconds: types.Positive = 300.0  # ... at most this
    expired_source_seconds: types.Positive = 600.0  # attempts at a URL past its expiry: at least three, over this time
    step_seconds: types.Positive = 600.0  # longest step, without waits for PostgreSQL; then its process is ended
    max_crashes: types.Count = 5  # claims of one row that never wrote back, before it is a dead letter POISON

    # --- providers
    poll_first_seconds: types.Positive | None = None  # wait before the first poll; None: the provider's own value
    # fal's documentation names the first, older pages the second; the first one that responds is used.
    fal_jwks_url: Annotated[types.Names, Field(min_length=1)] = (
        "https://rest.fal.ai/.well-known/jwks.json",
        "https://rest.alpha.fal.ai/.well-known/jwks.json",
    )

    # --- sweeps
    queue_depth: types.Count = 64  # wakes that dispatch keeps in each queue
    dispatch_seconds: types.Positive = 1.0
    reconcile_seconds: types.Positive = 2.0
    drain_seconds: types.Positive = 30.0
    discard_seconds: types.Positive = 10.0
    orphan_age_seconds: types.Positive = 86400.0  # a younger object may belong to work in flight
    orphans_per_run: types.Count = 1000


class Settings(BaseSettings):
    """Every setting with its default."""

    model_config = SettingsConfigDict(
        alias_generator=AliasGenerator(validation_alias=settings_sources.build_aliases),
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
        case_sensitive=False,
        populate_by_name=True,
    )

    env: Literal["development", "production"] = "development"
    log_level: types.LogLevel = "INFO"
    log_format: types.LogFormat = "console"

    # --- servers
    database_url: types.PostgresUrl
    broker_url: types.BrokerUrl
    s3_endpoint_url: types.HttpUrl | None = None
    s3_public_endpoint_url: types.HttpUrl | None = None
    s3_public_bucket: str = "moorage-public"
    s3_private_bucket: str = "moorage-private"
    s3_addressing_style: Literal["auto", "path", "virtual"] = "auto"
    s3_checksums: Literal["auto", "sha256", "md5", "none"] = "auto"
    aws_region: str = "us-east-1"
    aws_access_key_id: str | None = None
    aws_secret_access_key: SecretStr | None = None
    aws_session_token: SecretStr | None = None
    manage_buckets: bool = True  # create missing buckets and the public one's policy; off: an operator does
    asset_base_url: types.HttpUrl | None = None

    # --- HTTP
    public_url: types.HttpUrl = "http://127.0.0.1:8000"
    metrics_address: types.ListenAddress = "127.0.0.1:9464"  # of the receiver's /metrics; off: none
    api_token: SecretStr | None = None
    assets: Literal["redirect", "signed", "stream"] = "redirect"  # to the public bucket or a signed URL, or the bytes
    egress_allow: types.Addresses = ()  # private ADDRESS:PORT that downloads may use; refused in production
    allow_unsigned: types.Names = ()  # providers whose webhooks are accepted without a signature
    ignore_unregistered: types.Names = ()  # providers whose account has other uses, too

    # --- providers
    replicate_webhook_secret: types.Secrets = ()
    replicate_api_token: SecretStr | None = None
    replicate_api_url: types.HttpUrl = "https://api.replicate.com"
    replicate_output_hosts: types.Names = ("replicate.delivery", "*.replicate.delivery", "api.replicate.com")
    replicate_models: types.Names = REPLICATE_MODELS
    fal_key: SecretStr | None = None
    fal_user_id: types.Names = ()  # accounts whose webhooks are accepted
    fal_queue_url: types.HttpUrl = "https://queue.fal.run"
    fal_output_hosts: types.Names = ("fal.media", "*.fal.media")
    fal_models: types.Names = FAL_MODELS
    fal_openapi: str | None = None  # URL or path of the models' OpenAPI documents, with {model}
    openai_webhook_secret: types.Secrets = ()
    openai_api_key: SecretStr | None = None
    openai_api_url: types.HttpUrl = "https://api.openai.com"
    openai_output_hosts: types.Names = ()
    openai_models: types.Names = ("gpt-image-1",)
    standard_webhook_secret: types.Secrets = ()
    standard_output_hosts: types.Names = ()
    providers_file: Path | None = None  # declares further providers, in TOML
    keep_hosts: types.Names = ()

    # --- receiver
    webhook_max_bytes: types.Count = 16 * 2**20

    # --- downloads and media
    download_total_seconds: Annotated[float, Field(gt=0, le=540)] = 300.0  # less than the limit of a step
    image_max_bytes: types.Count = 200_000_000
    image_max_pixels: types.Count = 2**27  # of one frame
    animation_max_pixels: types.Count = 1_000_000_000  # of all frames
    decoder_memory_bytes: types.Count = 2_500_000_000  # address space of the process that decodes large images
    video_max_bytes: types.Count = 500_000_000  # of files that are no images, too
    accept: types.Accept = ACCEPT  # formats of outputs, and as upload:FORMAT those of uploads
    thumbnail_px: types.Count = 400

    # --- submitting
    in_flight: types.InFlight = types.IN_FLIGHT  # submitted predictions at once, by provider or PROVIDER:TEXT
    owner_limits: types.OwnerLimits = {}  # of each owner
    image_seconds: types.Positive = 60.0  # default time limit of a fallback entry
    video_seconds: types.Positive = 600.0
    placeholder_file: Path | None = None  # an image; without it one of the requested size is generated

    # --- uploads
    upload_max_bytes: types.Count = 50_000_000

    # --- owner tokens, for browsers
    owner_token_secret: types.LongSecret | None = None  # without it the key is derived from MOORAGE_API_TOKEN
    owner_token_seconds: Annotated[float, Field(ge=1, le=86400)] = 3600.0

    max_streams: types.Count = 5000  # open event streams in one process

    # --- notifications: webhooks to the application
    notify_urls: types.HttpUrls = ()  # the first is the default
    notify_secret: types.Secrets = ()  # whsec_...; several during rotation, each signs

    # --- work
    max_errors: types.Count = 12
    lease_seconds: Annotated[float, Field(ge=3, allow_inf_nan=False)] = 30.0
    stop_grace_seconds: types.Positive = 20.0
    partial: Literal["keep", "discard"] = "keep"
    job_deadline_seconds: types.Positive = 3600.0
    unmatched_seconds: types.Positive = 86400.0
    adopt: bool = False  # create a job for a delivery of an unregistered prediction

    # --- what is removed, and when. Days of 0: never
    maintenance_cron: str = "17 3 * * *"  # UTC, or "off"
    quarantine_seconds: types.Positive = 7 * 86400.0  # of refused files and orphans, in the private bucket
    retention_days: types.RetentionDays = types.RETENTION_DAYS
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
    def _check(self) -> "Settings":
        keys = {bool(self.aws_access_key_id), bool(self.aws_secret_access_key)}
        own_files = f"{self.public_url}/v1/assets"
        if len(keys) == 2 or (self.aws_session_token and keys == {False}):
            remedy = "write both, or none for boto3's own search"
            raise ValueError(
                f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY belong together, and to AWS_SESSION_TOKEN: {remedy}"
            )
        if self.s3_public_bucket == self.s3_private_bucket:
            raise ValueError("S3_PUBLIC_BUCKET and S3_PRIVATE_BUCKET are the same bucket: write two names")
        served_at = self.asset_base_url
        if self.assets == "redirect" and served_at and types.has_same_host_and_path(served_at, own_files):
            remedy = "write the public bucket's address, or MOORAGE_ASSETS=signed or stream"
            raise ValueError(f"ASSET_BASE_URL is the API's own address, which redirects to it: {remedy}")
        if self.env == "production":
            for problem, is_found in self._list_production_problems().items():
                if is_found:
                    raise ValueError(problem)
        return self

    def _list_production_problems(self) -> dict[str, Any]:
        """Return what is refused in production, with whether these settings have it."""
        is_short = self.api_token and len(self.api_token.get_secret_value()) < 32
        is_unsigned = not self.replicate_webhook_secret and "replicate" not in self.allow_unsigned
        return {
            "MOORAGE_EGRESS_ALLOW opens a private address and is refused in production: unset it": self.egress_allow,
            "MOORAGE_API_TOKEN has fewer than 32 characters: write one made with `openssl rand -hex 32`": is_short,
            "REPLICATE_API_TOKEN is set but REPLICATE_WEBHOOK_SECRET is not: write the secret, or name replicate in"
            " MOORAGE_ALLOW_UNSIGNED": self.replicate_api_token and is_unsigned,
            "FAL_KEY is set but FAL_USER_ID is not, and fal signs the webhooks of all users with one key: write your"
            " user's id": self.fal_key and not self.fal_user_id,
            "MOORAGE_NOTIFY_URL is set but MOORAGE_NOTIFY_SECRET is not: write whsec_ and the base64 text of 24 random"
            " bytes or more": self.notify_urls and not self.notify_secret,
        }

    @classmethod
    def settings_customise_sources(  # type: ignore[override]  # pydantic passes all sources by name
        cls, settings_cls: type[BaseSettings], **sources: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the `..._FILE` twins between the environment and `.env`."""
        read = settings_sources.read_file_twins(settings_cls, sources["dotenv_settings"].env_file)
        twins = InitSettingsSource(settings_cls, read)
        return sources["init_settings"], sources["env_settings"], twins, sources["dotenv_settings"]


def env_names_by_field() -> dict[str, list[str]]:
    """Return the environment names of every field, the preferred one first."""
    return {name: settings_sources.names_of(name, field) for name, field in Settings.model_fields.items()}


def load_settings(**overrides: Any) -> Settings:
    """Read the settings. Raises ConfigError with a line for each wrong or missing value and unknown `MOORAGE_` name."""
    known = [name for choices in env_names_by_field().values() for name in choices]
    overrides_known = [f"{DEVELOPER_PREFIX}{field.upper()}" for field in Constants.model_fields]
    problems = settings_sources.unknown_names(known, overrides_known)
    dotenv = {"_env_file": settings_sources.dotenv_path()}
    constants = _read(Constants, dotenv, problems)
    settings = _read(Settings, {**dotenv, **overrides}, problems)
    if settings and settings.env == "production" and constants and constants.model_fields_set:
        names = ", ".join(f"{DEVELOPER_PREFIX}{field.upper()}" for field in sorted(constants.model_fields_set))
        problems.append(f"{names}: developer overrides are refused in production: unset them")
    if settings and constants and (size := settings.webhook_max_bytes) > (limit := constants.bytes_in_flight):
        problems.append(f"MOORAGE_WEBHOOK_MAX_BYTES={size}: at most {limit}, the memory for all webhooks at once")
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
