"""
The provider interface; each provider implements it in one file.

`verify`, `select_headers`, `parse_report` and `refusal_reason` are pure and fast; `poll`, `list_predictions`, `submit`
and `cancel` send HTTP requests. An instance is created once per process, before it forks, and used by many threads.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr

from moorage.errors import BadSignature, ProviderRefused, ProviderUnavailable
from moorage.provider_types import ListedPrediction, PredictionReport, SubmitRequest, SubmitResult, VerifiedDelivery
from moorage.settings import Settings
from moorage.text import to_storable
from moorage.urls import HostAllowlist, parse_endpoint
from providers import endpoints, json_fields, output_files, output_schemas
from providers.api_client import ApiClient
from providers.output_schemas import Declares
from providers.signature_verifiers import STANDARD_HEADERS, Headers, StandardVerifier, Verifier
from providers.submit_client import RESPONSE_SECONDS, SubmitClient

Client = TypeVar("Client", ApiClient, SubmitClient)
_POLL_GROWTH: Final = 1.5
_POLL_SPREAD: Final = 5.0  # maximum wait, as a multiple of the first
_MAX_POLL_SECONDS: Final = 300.0  # a prediction may end right after a poll; its files must be kept before they expire
_MAX_HEADER_CHARS: Final = 500


class Provider(ABC):
    """One provider; `hosts` serve its output files, `verifier` verifies its webhooks."""

    name: ClassVar[str]  # in `/webhooks/{name}` and in every row
    label: ClassVar[str] = ""  # in messages about its API
    new_delivery_status: ClassVar[int] = 202
    known_delivery_status: ClassVar[int] = 200
    output_lifetime_seconds: ClassVar[float | None] = None  # of URLs, after the end of a prediction; None: unknown
    max_delivery_bytes: ClassVar[int | None] = None  # of a body; None: MOORAGE_WEBHOOK_MAX_BYTES alone
    webhook_headers: ClassVar[Sequence[str]] = STANDARD_HEADERS  # that verify a delivery, the signature last
    # Headers of a delivery that are stored, in lower case; never a signature or key.
    recorded_headers: ClassVar[frozenset[str]] = frozenset({"content-type", "traceparent", "user-agent"})
    default_first_poll_seconds: ClassVar[float] = 60.0
    models: Sequence[str] = ()  # those of its setting, which GET /v1/models offers
    file_path: re.Pattern[str] | None = None  # of files that its API serves with the token
    hosts_setting: ClassVar[str]  # of its output hosts; this and the next two are named in messages
    url_setting: ClassVar[str] = ""
    models_setting: ClassVar[str] = ""
    needs_model: ClassVar[bool] = False  # to poll a prediction
    sends_webhooks: ClassVar[bool] = True  # False: it is only polled
    webhook_setting: ClassVar[str]  # the setting that webhooks are verified with
    submit_setting: ClassVar[str | None] = None  # the API token's; None: it accepts no submissions
    submit_response_seconds: ClassVar[float] = RESPONSE_SECONDS
    file_fields: ClassVar[frozenset[str]] = frozenset()  # of an input, whose files are sent as bytes, not as URLs
    is_synchronous: ClassVar[bool] = False  # the response to a submission has the files: nothing to look up or poll

    def __init__(self, settings: Settings, *, hosts: HostAllowlist, verifier: Verifier | None = None) -> None:
        self.hosts: Final = hosts
        self.verifier: Final = verifier or StandardVerifier()  # without a secret
        own = (settings.public_url, settings.asset_base_url, settings.s3_public_endpoint_url, settings.s3_endpoint_url)
        self._own_endpoints = frozenset(parse_endpoint(url) for url in own if url)
        self._accepts_unsigned = self.name in settings.allow_unsigned
        self._first_poll_seconds = settings.constants.poll_first_seconds or self.default_first_poll_seconds
        # A developer override may be longer than the output life.
        self._longest_poll_seconds = max((self.output_lifetime_seconds or 1e9) / 10, self._first_poll_seconds)
        self._recorded_names: Final = {name.encode(): name for name in self.recorded_headers}
        self._api_url = ""
        self._token_header: tuple[str, str] | None = None  # None without a token, as both clients
        self._api: ApiClient | None = None
        self._submit_client: SubmitClient | None = None
        self.max_in_flight: Final[int] = settings.in_flight.get(self.name, 1)  # submitted predictions that run at once

    def _create_clients(self, scheme: str, token: SecretStr, max_bytes: int) -> None:
        """Create the clients of the API at `_api_url`; raises ConfigError for an invalid URL or token."""
        endpoints.require_secure_url(self._api_url, self.hosts, self.url_setting)
        header = self._token_header = endpoints.build_token_header(scheme, token, str(self.submit_setting))
        self._api = ApiClient(self.label, header, max_bytes=max_bytes)
        seconds = self.submit_response_seconds
        self._submit_client = SubmitClient(self.label, header, max_bytes=max_bytes, response_seconds=seconds)

    @property
    def is_enabled(self) -> bool:
        return self.has_secret or self._accepts_unsigned

    @property
    def has_secret(self) -> bool:
        """Return True if webhooks can be verified; unsigned ones are refused then."""
        return self.verifier.has_secret

    @property
    def can_poll(self) -> bool:
        """Return True if there is a status endpoint and its token is set."""
        return self._api is not None

    @property
    def can_submit(self) -> bool:
        return self._submit_client is not None

    @property
    def can_list(self) -> bool:
        """Return True if it lists its predictions with their webhook URLs: uncertain submissions can be looked up."""
        return False

    @property
    def can_cancel(self) -> bool:
        return self._api is not None

    def check_headers(self, headers: Headers, now: float) -> Any:
        """
        Check what needs no body: signature headers that are malformed, missing or out of date. Raises BadSignature.

        Returns what `verify_body` needs: None for an unsigned delivery, which MOORAGE_ALLOW_UNSIGNED allows only for a
        provider without a secret. `now` is in Unix seconds.
        """
        if self.has_secret:
            return self.verifier.check_headers(headers, now)
        if self._accepts_unsigned:
            return None
        raise BadSignature(f"{self.name} has no webhook secret: set {self.webhook_setting}")

    def verify_body(self, signature: Any, body: bytes) -> VerifiedDelivery:
        """
        Verify the signature of a body. Raises BadSignature, or KeysStale: call `fetch_keys` first.

        An unsigned delivery is identified by its body, since its id could be forged.
        """
        return VerifiedDelivery(webhook_id=None) if signature is None else self.verifier.verify_body(signature, body)

    def verify(self, headers: Headers, body: bytes, now: float) -> VerifiedDelivery:
        return self.verify_body(self.check_headers(headers, now), body)

    def _require(self, client: Client | None) -> Client:
        if client is None:
            raise ProviderRefused(f"{self.name} has no API token: set {self.submit_setting}")
        return client

    def _fetch_report(self, url: str, external_id: str, parse: Callable[[bytes], PredictionReport]) -> PredictionReport:
        body = self._require(self._api).get(url)
        with json_fields.translate_malformed(ProviderUnavailable, f"{self.label} returned a malformed status"):
            report = parse(body)
        if report.external_id != external_id:
            raise ProviderUnavailable(f"{self.label} returned data about {report.external_id}, which was not requested")
        return report

    def fetch_keys(self) -> None:
        self.verifier.fetch_keys()

    def select_headers(self, headers: Headers) -> dict[str, str]:
        named = [(self._recorded_names.get(name.lower()), value) for name, value in headers]
        return {name: to_storable(value.decode("latin-1"), _MAX_HEADER_CHARS) for name, value in named if name}

    def extract_files(
        self, value: Any, path: str, declares: Declares = output_schemas.say_nothing
    ) -> output_files.ExtractionResult:
        return output_files.extract_files(value, path, self.hosts, self._own_endpoints, declares)

    @abstractmethod
    def parse_report(self, body: bytes) -> PredictionReport:
        """Parse the body of a delivery; raises MalformedPayload, or UnrelatedEvent if it is not about a prediction."""

    def refine_report(
        self,
        report: PredictionReport,
        body: bytes,  # noqa: ARG002 (for subclasses)
        model: str | None,  # noqa: ARG002
    ) -> PredictionReport:
        """Return an unclear report by the output schema of the `model` as registered, if known; sends a request."""
        return report

    def poll(self, external_id: str, model: str | None = None) -> PredictionReport:  # noqa: ARG002 (for subclasses)
        """
        Request the status of a prediction; `model` as registered, for providers whose URLs contain it.

        Raises:
            ProviderUnavailable: no response, 429 or 5xx; `retry_after` if the provider states it.
            ProviderRefused: any other status; a retry cannot succeed.
        """
        raise ProviderRefused(f"{self.name} has no status endpoint to poll {to_storable(external_id, 100)}")

    def list_predictions(self, since: datetime) -> Iterator[list[ListedPrediction]]:
        """Yield the predictions created since a time in pages, newest first; raises as `poll`, possibly after some."""
        raise ProviderRefused(f"{self.name} has no list of predictions since {since:%Y-%m-%d %H:%M}")

    def submit(self, request: SubmitRequest) -> SubmitResult:
        """
        Submit a prediction by one request, which is never repeated here.

        Raises:
            RateLimited: 429; no prediction was created.
            NotSubmitted: no prediction was created: no connection, or the provider states it.
            SubmitUncertain: sent, but no response, a 5xx, or a response without an id.
            BillingRefused: no credit or quota, or the API token is not valid.
            ProviderRefused: any other 4xx, with the provider's reason.
        """
        model = to_storable(request.model, 100)
        raise ProviderRefused(f"{self.name} accepts no submissions from moorage: {model} was not submitted")

    def cancel(self, external_id: str, model: str | None = None) -> None:  # noqa: ARG002 (for subclasses)
        """Request the cancellation; no error if it ended. Webhook or poll report the result. Raises as `poll`."""
        raise ProviderRefused(f"{self.name} cannot cancel {to_storable(external_id, 100)}")

    def describe_models(self, kind: str) -> list[dict[str, Any]]:
        """
        Return the models of a kind (image or video): `name`, `description`, `kind`, `accepts` ("image": it has an image
        input) and `picture_field`. Raises as `poll`.
        """
        facts: dict[str, Any] = {"description": None, "kind": "image", "accepts": [], "picture_field": None}
        return [{"name": name, **facts} for name in self.models] if kind == "image" else []

    def get_input_schema(self, model: str) -> Mapping[str, Any] | None:  # noqa: ARG002 (for subclasses)
        """
        Return the JSON Schema of a model's input; None if the provider publishes none.

        Raises ProviderUnavailable (inputs are accepted unchecked then), or ProviderRefused for an unknown model.
        """
        return None

    def can_call(self, public_url: str) -> bool:
        """Return False if the provider would refuse a webhook URL: it is on the internet, and the URL is not https:."""
        return public_url.startswith("https:") or not self._api_url.startswith("https:")

    def first_poll_seconds(self) -> float:
        """Return the wait for a webhook before the first poll: the developer override, else the provider's default."""
        return self._first_poll_seconds

    def next_poll_seconds(self, polls: int) -> float:
        """Return the wait after `polls` polls: up to 5 times the first, 300 s, and a tenth of the output life."""
        growth = min(_POLL_GROWTH ** min(max(polls, 0), 10), _POLL_SPREAD)
        return min(self._first_poll_seconds * growth, _MAX_POLL_SECONDS, self._longest_poll_seconds)

    def refusal_reason(self, url: str) -> str | None:
        """Return None if a URL may be downloaded, else the reason, which names the host and the setting to change."""
        return self.hosts.refusal_reason(url)

    def download_headers(self, url: str) -> dict[str, str]:
        """
        Return the token for files of the API itself, which need it; none for the other hosts of output files.

        Output hosts are chosen by operators, for files that anybody with the URL may read.
        """
        if not self._token_header or not self.file_path or self.refusal_reason(url) is not None:
            return {}
        is_of_api = parse_endpoint(url) == parse_endpoint(self._api_url) and self.file_path.fullmatch(
            urlsplit(url).path
        )
        return dict([self._token_header]) if is_of_api else {}
