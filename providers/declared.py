"""A provider that is declared in MOORAGE_PROVIDERS_FILE: it receives webhooks and polls; what submits is a subclass."""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar, Final

import jmespath
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from moorage.errors import ConfigError, MalformedPayload, ProviderRefused, UnrelatedEvent
from moorage.provider_types import PredictionReport
from moorage.settings import Settings
from moorage.urls import HostAllowlist
from providers import declarations, endpoints, json_fields, webhook_signing
from providers.api_client import ApiClient
from providers.base import Provider
from providers.declarations import Declaration, WebhookDeclaration
from providers.jwks import KeySet
from providers.signature_verifiers import DigestVerifier, HmacVerifier, StandardVerifier, TokenVerifier, Verifier
from providers.submit_client import SubmitClient

_FIELDS: Final = ("id", "status", "outputs", "error", "completed_at", "expires_at")
_DECODERS: Final[Mapping[str, Callable[[str], bytes]]] = {"text": str.encode, "hex": bytes.fromhex}
_HINT: Final = "callback"  # instead of the status in a body that anybody could have sent


class DeclaredProvider(Provider):
    """`declaration` says where its fields stand; its class attributes are set by `providers.load`."""

    jwks_setting: ClassVar[str]

    def __init__(self, settings: Settings, declaration: Declaration) -> None:
        hosts = HostAllowlist(declaration.output_hosts, settings.egress_allow, setting=self.hosts_setting)
        verifier = (
            _build_verifier(self.name, declaration.webhook, self.jwks_setting, hosts) if declaration.webhook else None
        )
        super().__init__(settings, hosts=hosts, verifier=verifier)
        self._statuses, self._is_hint, self.models = declaration.status_words, declaration.is_hint, declaration.models
        if declaration.webhook and declaration.webhook.signature == "none":
            self._accepts_unsigned = True
        assert declaration.fields is not None  # noqa: S101 (validated)
        texts = {name: getattr(declaration.fields, name) for name in (*_FIELDS, "when")}
        self._fields = _Fields(texts)
        self._poll_fields, self._poll_remedy = self._fields, "it has no table poll"
        if poll := declaration.poll:
            own = {name: poll.fields.get(name, texts[name]) for name in _FIELDS}
            self._poll_fields, self._api_url = _Fields({**own, "when": None}), poll.url
            self._poll_remedy = f"set {poll.token}"
            endpoints.require_secure_url(_fill_in(poll.url, "id", "model"), hosts, self.url_setting)
            self.file_path = re.compile(".*") if poll.serves_files else None
            for token in declarations.read_secrets([poll.token])[:1]:
                header = self._token_header = endpoints.build_token_header(
                    poll.scheme, token, poll.token, name=poll.header
                )
                max_bytes, headers = settings.webhook_max_bytes, poll.headers
                self._api = ApiClient(self.label, header, max_bytes=max_bytes, headers=headers)
                if declaration.submit:
                    self._submit_client = SubmitClient(self.label, header, max_bytes=max_bytes)

    @property
    def can_cancel(self) -> bool:
        return False

    def parse_report(self, body: bytes) -> PredictionReport:
        return self._parse(body, self._fields)

    def parse_poll(self, body: bytes, external_id: str = "") -> PredictionReport:
        """Parse the answer to a poll; one without an id is about `external_id`, which was requested."""
        return self._parse(body, self._poll_fields, external_id)

    def poll(self, external_id: str, model: str | None = None) -> PredictionReport:
        if self._api is None:
            raise ProviderRefused(f"{self.name} cannot be polled: {self._poll_remedy}")
        if "{model}" in self._api_url and not model:
            raise ProviderRefused(f"a prediction of {self.name} is polled by its model: register it with one")
        url = _fill_in(self._api_url, external_id, model or "none")
        return self._fetch_report(url, external_id, lambda body: self.parse_poll(body, external_id))

    def _parse(self, body: bytes, fields: "_Fields", requested_id: str | None = None) -> PredictionReport:
        document = json_fields.parse_json_object(body)
        if not fields.applies_to(document):
            raise UnrelatedEvent(f"{fields.texts['when']} is not true of this event")
        found, external_id, word = fields.find("id", document), requested_id, fields.find("status", document)
        word = str(word).lower() if isinstance(word, int) else word  # as JSON writes it
        if found is not None or external_id is None:
            external_id = json_fields.require_id(found, f"id ({fields.texts['id']})")
        if self._is_hint and fields is self._fields:  # only a poll says what is true
            status = self._statuses.get(word.casefold()) if isinstance(word, str) else None
            is_open = status in ("queued", "running")
            is_unverified = not self.has_secret
            return PredictionReport(external_id, "unknown", _HINT, needs_fetch=not is_open, is_unverified=is_unverified)
        word = json_fields.require_text(word, f"status ({fields.texts['status']})")
        status = self._statuses.get(word.casefold(), "unknown")
        files = self.extract_files(fields.find("outputs", document) if status == "succeeded" else None, "outputs")
        return PredictionReport(
            external_id=external_id,
            status=status,
            raw_status=word,
            outputs=files.outputs,
            mentions=files.mentions,
            error=json_fields.optional_text(fields.find("error", document)),
            completed_at=fields.find_time("completed_at", document),
            expires_at=fields.find_time("expires_at", document),
        )


def _fill_in(url: str, external_id: str, model: str) -> str:
    quote = endpoints.quote_path_segment
    url = url.replace("{model}", quote(model))
    if "{+id}" in url:
        return url.replace("{+id}", "/".join(map(quote, external_id.split("/"))))
    return url.replace("{id}", quote(external_id))


class _Fields:
    def __init__(self, texts: Mapping[str, str | None]) -> None:
        self.texts = texts
        self._compiled = {name: jmespath.compile(text) for name, text in texts.items() if text}

    def applies_to(self, document: Mapping[str, Any]) -> bool:
        return "when" not in self._compiled or bool(self.find("when", document))

    def find(self, name: str, document: Mapping[str, Any]) -> Any:
        """Return what an expression finds, None if nothing; raises MalformedPayload if it does not fit the document."""
        if name not in self._compiled:
            return None
        try:
            return self._compiled[name].search(document)
        except (jmespath.exceptions.JMESPathError, ArithmeticError, RecursionError) as error:
            raise MalformedPayload(f"{name} ({self.texts[name]}): {str(error)[:200]}") from error

    def find_time(self, name: str, document: Mapping[str, Any]) -> datetime | None:
        """Return a time, the earliest of several."""
        found = self.find(name, document)
        values = found if isinstance(found, list) else [found]
        times = (json_fields.optional_unix_time(value) or json_fields.optional_datetime(value) for value in values)
        return min(filter(None, times), default=None)


def _build_verifier(name: str, webhook: WebhookDeclaration, setting: str, hosts: HostAllowlist) -> Verifier | None:
    """Return the verifier of a declaration; one without secrets if their variables are not set. Raises ConfigError."""
    for url in webhook.jwks:
        endpoints.require_secure_url(url, hosts, setting)
    secrets, fixed = _decode_secrets(webhook)
    keys = KeySet(f"{name}'s public keys", webhook.jwks, fixed=fixed)
    match webhook.signature:
        case "standard":
            names = [webhook.headers] if webhook.headers else None
            return StandardVerifier(secrets, keys if fixed or webhook.jwks else None, names=names)
        case "digest":
            return DigestVerifier(keys, webhook.headers, users=webhook.users, sender=name)
        case "hmac":
            return HmacVerifier(
                secrets, webhook.headers[0], prefix=webhook.prefix, algorithm=webhook.algorithm,
                is_timed=webhook.is_timed, tolerance_seconds=webhook.tolerance_seconds,
            )  # fmt: skip
        case "token":
            return TokenVerifier(secrets, webhook.headers[0], scheme=webhook.scheme)
        case _:
            return None


def _decode_secrets(webhook: WebhookDeclaration) -> tuple[tuple[bytes, ...], tuple[Ed25519PublicKey, ...]]:
    given, variables = declarations.read_secrets(webhook.secrets), " or ".join(webhook.secrets)
    encoding = webhook.encoding or ("base64" if webhook.signature == "standard" else "text")
    if encoding == "base64":
        return webhook_signing.split_standard_keys(given, variables)
    try:
        return tuple(_DECODERS[encoding](value.get_secret_value()) for value in given), ()
    except ValueError:  # not chained: the cause would show the secret
        raise ConfigError(f"{variables} is not in the encoding {encoding}: copy it as it is shown") from None
