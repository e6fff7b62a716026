"""
Settings from the environment, `.env` and `..._FILE` twins. A wrong value or an unknown `MOORAGE_` name is refused.

Usual names first (`DATABASE_URL`, `AWS_REGION`, ...), ours as `MOORAGE_...`. `load()` is the way in.
"""

import difflib
import functools
import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from dotenv import dotenv_values
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from moorage.errors import ConfigError

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


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
Days = Annotated[float, Field(ge=0, le=36500)]

_VALKEY = re.compile(r"(^|;)valkey(s?)://")  # a URL may name several brokers

# Read by other parts of the house, straight from the environment.
_NOT_OURS = {"MOORAGE_FAILPOINT", "MOORAGE_DATA_DIR", "MOORAGE_DOTENV"}


class Settings(LifeSettings):
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
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", validation_alias=named("LOG_LEVEL"))
    log_format: Literal["json", "console"] = Field("console", validation_alias=named("LOG_FORMAT"))

    # --- servers
    database_url: SecretStr = Field(validation_alias=named("DATABASE_URL"))
    broker_url: SecretStr = Field(validation_alias=named("CELERY_BROKER_URL", "REDIS_URL"))
    s3_endpoint_url: str | None = Field(None, validation_alias=named("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    s3_public_endpoint_url: str | None = Field(None, validation_alias=named("S3_PUBLIC_ENDPOINT_URL"))
    s3_public_bucket: str = Field("moorage-public", validation_alias=named("S3_PUBLIC_BUCKET"))
    s3_private_bucket: str = Field("moorage-private", validation_alias=named("S3_PRIVATE_BUCKET"))
    s3_addressing_style: Literal["auto", "path", "virtual"] = Field(
        "auto", validation_alias=named("S3_ADDRESSING_STYLE")
    )
    aws_region: str = Field("us-east-1", validation_alias=named("AWS_REGION", "AWS_DEFAULT_REGION"))
    aws_access_key_id: str | None = Field(None, validation_alias=named("AWS_ACCESS_KEY_ID"))
    aws_secret_access_key: SecretStr | None = Field(None, validation_alias=named("AWS_SECRET_ACCESS_KEY"))
    manage_buckets: bool = True  # make missing buckets and the public one's policy; off: an operator does
    asset_base_url: str | None = Field(None, validation_alias=named("ASSET_BASE_URL"))

    # --- the outside
    public_url: str = Field("http://127.0.0.1:8000", validation_alias=named("PUBLIC_URL"))
    api_token: SecretStr | None = None
    assets: Literal["redirect", "stream"] = "redirect"  # how files are answered: by the way to storage, or with bytes
    egress_allow: Names = ()  # exact ADDRESS:PORT that the guard lets through; never in production
    allow_unsigned: Names = ()  # providers whose webhooks are taken without a signature, asked for by name

    # --- receiver
    webhook_max_bytes: Count = 16 * 2**20
    bytes_in_flight: Count = 128 * 2**20
    answer_seconds: Positive = 3.0

    # --- downloads and media
    download_connect_seconds: Positive = 5.0
    download_idle_seconds: Positive = 15.0
    download_total_seconds: Positive = 300.0
    download_min_bytes_per_second: Count = 50_000
    download_max_redirects: Annotated[int, Field(ge=0)] = 5
    image_max_bytes: Count = 50_000_000
    image_max_pixels: Count = 64_000_000
    video_max_bytes: Count = 500_000_000
    thumbnail_px: Count = 400

    # --- work
    max_errors: Count = 12
    max_crashes: Count = 5
    wait_base_seconds: Positive = 2.0
    wait_cap_seconds: Positive = 300.0
    lease_seconds: Annotated[float, Field(ge=3, allow_inf_nan=False)] = 30.0
    stop_grace_seconds: Positive = 20.0
    partial: Literal["keep", "discard"] = "keep"
    job_deadline_seconds: Positive = 3600.0
    unmatched_seconds: Positive = 86400.0
    adopt: bool = False  # make a job for a delivery that nobody registered
    poll_first_seconds: Positive | None = None  # instead of the provider's own clock
    queue_depth: Count = 64
    dispatch_seconds: Positive = 1.0
    reconcile_seconds: Positive = 2.0
    drain_seconds: Positive = 30.0
    discard_seconds: Positive = 10.0

    # --- what is removed, and when. Cron lines are in UTC; "off" switches a sweep off. Days of 0 mean: for ever
    orphans_cron: str = "17 3 * * *"
    orphan_age_seconds: Positive = 86400.0  # an object that no row names is left alone until then
    quarantine_seconds: Positive = 7 * 86400.0  # orphans wait so long in the private bucket before they are deleted
    orphans_per_run: Count = 1000
    retention_cron: str = "37 3 * * *"
    usage_cron: str = "7 * * * *"  # counts the storage used
    keep_renders_days: Days = 0.0
    keep_bodies_days: Days = 30.0  # raw bodies of webhooks that were applied or ignored
    keep_failed_days: Days = 30.0  # raw bodies of dead deliveries and inline bytes of dead outputs
    keep_rows_days: Days = 0.0  # ended deliveries, closed dead letters, failed jobs and those of deleted renders
    alive_file: str | None = None  # touched every few seconds by a worker or beat that runs, for health checks

    @field_validator("egress_allow", "allow_unsigned", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return split(value)

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("postgres://", "postgresql://")):
            raise ValueError("write postgresql://USER:PASSWORD@HOST:5432/DATABASE")
        return value

    @field_validator("broker_url")
    @classmethod
    def _is_broker(cls, value: SecretStr) -> SecretStr:
        # Valkey speaks Redis' protocol, and kombu knows it by that name alone.
        url = _VALKEY.sub(r"\1redis\2://", value.get_secret_value())
        schemes = ("redis://", "rediss://", "amqp://", "amqps://", "sentinel://", "memory://")
        if not url.startswith(schemes):
            raise ValueError("write redis://:PASSWORD@HOST:6379/0 or amqp://USER:PASSWORD@HOST:5672/")
        return SecretStr(url)

    @field_validator("s3_endpoint_url", "s3_public_endpoint_url", "asset_base_url", "public_url")
    @classmethod
    def _is_http(cls, value: str | None) -> str | None:
        return http_url(value)

    @field_validator("egress_allow")
    @classmethod
    def _is_address_and_port(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            host, _, port = entry.rpartition(":")
            try:
                ipaddress.ip_address(host.strip("[]"))
                valid = port.isascii() and port.isdigit() and 0 < int(port) < 65536
            except ValueError:
                valid = False
            if not valid:
                raise ValueError(f"{entry!r} is not ADDRESS:PORT; write for example 127.0.0.1:8081")
        return value

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
        if self.notify_url and not self.notify_secret:
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
        return init_settings, env_settings, _FileTwins(settings_cls), dotenv_settings


class _FileTwins(PydanticBaseSettingsSource):
    """For every setting NAME, the contents of the file that NAME_FILE names."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Return the value, its key and that it is not complex; pydantic's contract."""
        for name in _names_of(field_name, field):
            path = os.environ.get(f"{name}_FILE")
            if path:
                try:
                    return Path(path).read_text(encoding="utf-8").strip(), field_name, False
                except (OSError, UnicodeDecodeError) as error:
                    raise ConfigError(f"{name}_FILE={path}: cannot be read ({error})") from error
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return what the twins set, by field name."""
        found = {n: self.get_field_value(f, n)[0] for n, f in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


def _names_of(field_name: str, field: Any) -> list[str]:
    alias = field.validation_alias
    return [str(choice) for choice in alias.choices] if alias else [f"MOORAGE_{field_name.upper()}"]


def names() -> dict[str, list[str]]:
    """Return the environment names of every field, the preferred one first."""
    return {name: _names_of(name, field) for name, field in Settings.model_fields.items()}


def dotenv_path() -> str:
    """Return the file that settings are read from beside the environment: MOORAGE_DOTENV, empty for none."""
    return os.environ.get("MOORAGE_DOTENV", ".env")


def load(**overrides: Any) -> Settings:
    """
    Read the settings.

    Raises:
        ConfigError: a value is wrong or missing, or an unknown `MOORAGE_` name is set; the message has a line for each.
    """
    problems = _unknown_names()
    try:
        settings = Settings(**{"_env_file": dotenv_path(), **overrides})
    except ValidationError as error:
        problems += [_explain(item) for item in error.errors()]
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


@functools.cache
def get() -> Settings:
    """Return the process's settings, read once."""
    return load()


def _unknown_names() -> list[str]:
    known = {name for choices in names().values() for name in choices} | _NOT_OURS
    known |= {f"{name}_FILE" for name in known}
    seen = {n.upper() for n in (*os.environ, *dotenv_values(dotenv_path())) if n.upper().startswith("MOORAGE_")}
    problems = []
    for name in sorted(seen - known):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "unset it, or see .env.example for the names that exist"
        problems.append(f"{name} is not a setting: {hint}")
    return problems


def _explain(item: Any) -> str:
    name = str(item["loc"][0]) if item["loc"] else ""
    env = names().get(name, [name])[0] if name in Settings.model_fields else name
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{env} is not set: write {env}=... (see .env.example)"
    if not env:
        return str(message)
    is_secret = any(word in env.lower() for word in ("secret", "token", "url", "_key"))
    shown = "" if is_secret else f"={item['input']!r}"
    return f"{env}{shown}: {message[:1].lower()}{message[1:]}"
