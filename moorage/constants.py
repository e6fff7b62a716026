"""Values that no operator changes, and the prefix that overrides them for development (CONTRIBUTING.md)."""

from typing import Annotated, Final

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from moorage.setting_types import Count, Names, Positive

DEVELOPER_PREFIX: Final = "MOORAGE_DEV_"


class Constants(BaseSettings):
    """Field `x` is overridden by `MOORAGE_DEV_X`: tests, the demo and the drill shorten waits with it."""

    model_config = SettingsConfigDict(
        env_prefix=DEVELOPER_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True, case_sensitive=False
    )

    # --- receiver
    bytes_in_flight: Count = 128 * 2**20  # webhook bodies in memory at once; above: 503
    answer_seconds: Positive = 3.0  # a webhook that is not committed by then: 503

    # --- downloads
    download_connect_seconds: Positive = 5.0
    download_idle_seconds: Positive = 15.0  # without a byte
    download_min_bytes_per_second: Count = 50_000  # on average, after 10 s
    download_max_redirects: Annotated[int, Field(ge=0)] = 5

    # --- retries
    wait_base_seconds: Positive = 2.0  # a retry waits a random fraction of base * 2**attempt ...
    wait_cap_seconds: Positive = 300.0  # ... at most this
    expired_source_seconds: Positive = 600.0  # attempts at a URL past its expiry: at least three, over this time
    step_seconds: Positive = 600.0  # longest step, without waits for PostgreSQL; then its process is ended
    max_crashes: Count = 5  # claims of one row that never wrote back, before it is a dead letter POISON

    # --- providers
    poll_first_seconds: Positive | None = None  # wait before the first poll; None: the provider's own value
    # fal's documentation names the first, older pages the second; the first one that responds is used.
    fal_jwks_url: Annotated[Names, Field(min_length=1)] = (
        "https://rest.fal.ai/.well-known/jwks.json",
        "https://rest.alpha.fal.ai/.well-known/jwks.json",
    )

    # --- sweeps
    queue_depth: Count = 64  # wakes that dispatch keeps in each queue
    dispatch_seconds: Positive = 1.0
    reconcile_seconds: Positive = 2.0
    drain_seconds: Positive = 30.0
    discard_seconds: Positive = 10.0
    orphan_age_seconds: Positive = 86400.0  # a younger object may belong to work in flight
    orphans_per_run: Count = 1000
