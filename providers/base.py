"""
The contract of a provider: what the receiver and the steps may ask of it. One file a provider implements it.

`verify`, `keep_headers`, `redact`, `parse` and `allows` are pure and quick; `poll`, `list_since`, `submit` and `cancel`
speak HTTP. An instance is made
once a process, before it forks, and is used by many threads.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final

from moorage.errors import BadSignature, ProviderRefused
from moorage.provider_types import ListedPrediction, PredictionReport, SubmitRequest, SubmitResult, VerifiedDelivery
from moorage.settings import Settings
from moorage.text import to_storable
from moorage.urls import HostAllowlist
from providers.api_client import ApiClient
from providers.signatures import Headers
from providers.submit_client import SubmitClient

_POLL_GROWTH: Final = 1.5
_POLL_SPREAD: Final = 5.0  # later polls are at most this many times as far apart as the first
_MAX_POLL_SECONDS: Final = 300.0
_MAX_HEADER_CHARS: Final = 500


class Provider(ABC):
    """
    One provider's dialect.

    Args:
        settings: of the process.
        hosts: where its files may be fetched.
        secrets: the live webhook secrets, decoded as the dialect wants.

    Attributes:
        name: as it stands in `/webhooks/{name}` and in every row.
        answer_new, answer_known: the HTTP status that the dialect wants for a new delivery and for a known one.
        can_poll: it has a status endpoint and the token for it is set.
        enabled_by: the setting that webhooks are verified by.
        ordered_by: the setting that orders are paid with; None: it takes none.
        enabled: it takes webhooks: a secret is set, or MOORAGE_ALLOW_UNSIGNED names it.
        can_submit: it takes orders, and the token for it is set.
        can_list: it keeps a list of what it made, with the webhook address of each: a submission can be looked up.
        can_cancel: it can be asked to stop a prediction.
        synchronous: it answers an order with the files, a minute later; then nothing can be looked up or polled.
        max_in_flight: how many of its predictions that moorage submitted may be in flight at once.
        output_life_seconds: how long its URLs live from the end of a prediction; None: not known.
        kept_headers: those of a delivery worth recording, in lower case; no signature, no key.
    """

    name: ClassVar[str]
    new_delivery_status: ClassVar[int] = 202
    known_delivery_status: ClassVar[int] = 200
    output_lifetime_seconds: ClassVar[float | None] = None
    recorded_headers: ClassVar[frozenset[str]] = frozenset({"content-type", "traceparent", "user-agent"})
    default_first_poll_seconds: ClassVar[float] = 60.0
    webhook_setting: ClassVar[str]
    submit_setting: ClassVar[str | None] = None
    is_synchronous: ClassVar[bool] = False

    def __init__(self, settings: Settings, *, hosts: HostAllowlist, secrets: Sequence[bytes]) -> None:
        self.hosts: Final = hosts
        self._secrets = tuple(secrets)
        self._takes_unsigned = self.name in settings.allow_unsigned
        self._first_poll_seconds = settings.constants.poll_first_seconds or self.default_first_poll_seconds
        self._api: ApiClient | None = None  # both: once the token is set
        self._submitter: SubmitClient | None = None
        self.max_in_flight: Final[int] = settings.in_flight.get(self.name, 1)

    @property
    def is_enabled(self) -> bool:
        """Return whether webhooks are taken."""
        return self.has_secret or self._takes_unsigned

    @property
    def has_secret(self) -> bool:
        """Return whether what webhooks are verified by is set; then every one is."""
        return bool(self._secrets)

    @property
    def can_poll(self) -> bool:
        """Return whether `poll` can be asked."""
        return self._api is not None

    @property
    def can_submit(self) -> bool:
        """Return whether `submit` can be asked."""
        return self._submitter is not None

    @property
    def can_list(self) -> bool:
        """Return whether `list_since` can be asked."""
        return False

    @property
    def can_cancel(self) -> bool:
        """Return whether `cancel` can be asked."""
        return self._api is not None

    def verify(self, headers: Headers, body: bytes, now: float) -> VerifiedDelivery:
        """
        Return what the signature vouches for; `now` is in seconds since 1970.

        A secret that is set is always used: MOORAGE_ALLOW_UNSIGNED opens a provider only where it has none. What comes
        unsigned is known by its body, since anybody could write an id over it.

        Raises:
            BadSignature: whatever else the bytes are.
            KeysStale: only after `fetch_keys` can this be judged.
        """
        if self.has_secret:
            return self._verify(headers, body, now)
        if self._takes_unsigned:
            return VerifiedDelivery(webhook_id=None)
        raise BadSignature(f"{self.name} has no webhook secret: set {self.webhook_setting}")

    @abstractmethod
    def _verify(self, headers: Headers, body: bytes, now: float) -> VerifiedDelivery:
        """Check the signature in the provider's dialect; `has_secret` is true."""

    def fetch_keys(self) -> None:  # noqa: B027 (most dialects have a secret instead)
        """Fetch the public keys that `verify` asks for with KeysStale; blocks for seconds, raises nothing."""

    def select_headers(self, headers: Headers) -> dict[str, str]:
        """Return the headers worth recording, names in lower case, values as text that can be stored."""
        kept = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers)
        return {name: to_storable(value, _MAX_HEADER_CHARS) for name, value in kept if name in self.recorded_headers}

    @abstractmethod
    def parse_report(self, body: bytes) -> PredictionReport:
        """
        Return what a delivery says.

        Raises:
            Unreadable: it is not in the provider's dialect; the message says why.
            NotOurs: it is, but tells of no prediction.
        """

    def poll(self, external_id: str, model: str | None = None) -> PredictionReport:  # noqa: ARG002 (some dialects need it)
        """
        Ask the provider how a prediction stands.

        Args:
            model: as it was registered, for providers whose addresses name it.

        Raises:
            ProviderUnavailable: no answer, 429 or 5xx; `retry_after` as asked for.
            ProviderRefused: any other answer; asking again will not help.
        """
        shown = to_storable(external_id, 100)
        raise ProviderRefused(f"{self.name} cannot be asked about {shown}: it has no status endpoint")

    def list_predictions(self, since: datetime) -> Iterator[list[ListedPrediction]]:
        """
        Yield what the provider made from `since` on, a page at a time, newest first.

        Raises:
            ProviderUnavailable: no answer, 429 or 5xx, or what is no list; pages before it were yielded.
            ProviderRefused: it keeps no list, or any other answer.
        """
        raise ProviderRefused(f"{self.name} cannot be asked what it made since {since:%Y-%m-%d %H:%M}: it has no list")

    def submit(self, request: SubmitRequest) -> SubmitResult:
        """
        Have the provider make what is ordered; one request, never sent twice in here.

        Raises:
            ProviderBusy: 429; nothing was made, come again after `retry_after`.
            NotSubmitted: nothing was made: the request did not leave, or the provider says so.
            SubmitUncertain: sent, and not answered, answered 5xx, or with what names no prediction.
            BillingRefused: no credit, quota spent.
            ProviderRefused: any other 4xx; the message says what the provider dislikes.
        """
        raise ProviderRefused(
            f"{self.name} takes no orders from moorage: {to_storable(request.model, 100)} was not submitted"
        )

    def cancel(self, external_id: str, model: str | None = None) -> None:  # noqa: ARG002 (some dialects need it)
        """
        Ask the provider to stop a prediction; one that has ended is no error. How it ended is for webhook and poll.

        Raises:
            ProviderUnavailable, ProviderRefused: as `poll`.
        """
        raise ProviderRefused(f"{self.name} cannot be asked to stop {to_storable(external_id, 100)}")

    def list_models(self, kind: str) -> list[dict[str, Any]]:  # noqa: ARG002 (dialects with models read it)
        """
        Return the models known for a kind (image or video): `name` as an entry of a chain wants it, `description`,
        `kind`, and `accepts` (image: it takes a picture as input).

        Raises:
            ProviderUnavailable, ProviderRefused: as `poll`.
        """
        return []

    def get_input_schema(self, model: str) -> Mapping[str, Any] | None:  # noqa: ARG002 (dialects with schemas read it)
        """
        Return the JSON Schema of a model's input; None where the provider offers none.

        Raises:
            ProviderUnavailable: it cannot be asked now, which is no reason to refuse an input.
            ProviderRefused: there is no such model.
        """
        return None

    def first_poll_seconds(self) -> float:
        """Return how long to wait for a webhook before the first poll: the constant, else the provider's own."""
        return self._first_poll_seconds

    def next_poll_seconds(self, polls: int) -> float:
        """
        Return how long to wait after `polls` polls: half as long again each time, at most 5 times the first wait.

        Never more than 300 s: a prediction may end right after a poll, and its files must be fetched in their life.
        """
        growth = min(_POLL_GROWTH ** min(max(polls, 0), 10), _POLL_SPREAD)
        return min(self._first_poll_seconds * growth, _MAX_POLL_SECONDS)

    def refusal_reason(self, url: str) -> str | None:
        """Return None when a URL may be fetched, else why not, with the host and the setting that would allow it."""
        return self.hosts.refusal_reason(url)

    def download_headers(self, url: str) -> dict[str, str]:  # noqa: ARG002 (a provider with a token reads it)
        """Return the headers to fetch a URL with: credentials only for hosts of the provider's own."""
        return {}
