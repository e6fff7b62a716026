"""Client of moorage's HTTP API, and verification of its notifications. All fields: docs/http.md of moorage."""

import base64
import hashlib
import hmac
import json
import math
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict, Unpack, cast

import requests

__all__ = [
    "ChainEntry",
    "Client",
    "InvalidSignature",
    "Job",
    "JobOptions",
    "MoorageError",
    "Notification",
    "Render",
    "Variant",
    "verify_webhook",
]

JobState = Literal["open", "keeping", "succeeded", "partial", "failed", "cancelled"]

_WAIT_SECONDS = 30.0  # of one request of `wait`
_ASK_AGAIN_SECONDS = 1.0
_RETRIED_STATUSES = (502, 503, 504)
_MAX_PAUSE_SECONDS = 30.0
_ANSWER_SECONDS = 1.0  # after the end of a wait, for an answer that is under way


class Variant(TypedDict):
    """A stored file."""

    idx: int
    url: str
    thumb_url: str | None
    sha256: str
    bytes: int
    media: Literal["image", "video", "file"]
    content_type: str
    width_px: int | None
    height_px: int | None
    duration_s: float | None
    is_cover: bool
    is_placeholder: bool


class JobError(TypedDict):
    subject: str
    type: str | None
    message: str | None
    idx: int | None
    path: str | None
    retryable: bool


class Job(TypedDict):
    """A job as GET /v1/jobs/{job_id} returns it; `settled_at` is null until it has ended."""

    job_id: str
    owner: str
    state: JobState
    reason: str | None
    render_id: str | None
    project_id: str | None
    prompt: str | None
    metadata: dict[str, str]
    variants: list[Variant]
    errors: list[JobError]
    created_at: str
    settled_at: str | None


class AcceptedJob(TypedDict):
    """A job that was created now, or by an earlier request."""

    job_id: str
    prediction_id: str
    state: JobState
    is_new: bool


class Render(TypedDict):
    """A published result."""

    render_id: str
    owner: str
    kind: str
    prompt: str | None
    style: str | None
    project_id: str | None
    metadata: dict[str, str]
    variants: list[Variant]
    published_at: str


class Notification(TypedDict):
    """The end of a job; of two notifications of a job, the one with the higher data["sequence"] is the latest."""

    type: Literal["job.succeeded", "job.partial", "job.failed", "job.cancelled"]
    timestamp: str
    data: dict[str, Any]


class ChainEntry(TypedDict):
    """A model of a fallback chain."""

    provider: str
    model: str
    input: NotRequired[Mapping[str, Any]]
    map: NotRequired[Mapping[str, str]]
    seconds: NotRequired[float]


class ResultOptions(TypedDict, total=False):
    """Where the files belong."""

    kind: str
    mode: str
    room_type: str
    style: str
    prompt: str
    project_id: str
    scene: str | int | float
    policy: Literal["keep", "discard"]
    notify_url: str
    metadata: Mapping[str, str]


class JobOptions(ResultOptions, total=False):
    input: Mapping[str, Any]
    variants: int
    placeholder: bool
    deadline_seconds: float


class RegistrationOptions(ResultOptions, total=False):
    model: str
    deadline_seconds: float


class RenderFilter(TypedDict, total=False):
    owner: str
    state: JobState
    kind: str
    style: str
    project_id: str


class MoorageError(Exception):
    """moorage refused a request: `status` and `detail`; `errors` are the invalid fields, each with its message."""

    def __init__(self, status: int, detail: str, errors: Sequence[Mapping[str, str]], request_id: str | None) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail
        self.errors = list(errors)
        self.request_id = request_id


class InvalidSignature(Exception):
    """A notification that moorage did not sign with this secret, or that is too old."""


class Client:
    """
    A client with a token of level application (or an owner token, which sees one owner).

    Not shared between threads. `timeout`: seconds for one request; `retry_seconds`: how long a request is repeated
    while moorage cannot be reached or answers 503, which loses nothing.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float = 30.0,
        retry_seconds: float = 120.0,
        session: requests.Session | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"}
        self._timeout = timeout
        self._retry_seconds = retry_seconds
        self._session = session or requests.Session()

    def keep(
        self, urls: Sequence[str], *, owner: str, idempotency_key: str | None = None, **options: Unpack[ResultOptions]
    ) -> AcceptedJob:
        """Store the files at the URLs as one job. A repeated request with the same key returns the same job."""
        body = {"owner": owner, "urls": list(urls), **options}
        return cast(AcceptedJob, self._post("/v1/keep", body, idempotency_key))

    def create_job(
        self,
        *,
        owner: str,
        chain: Sequence[ChainEntry],
        idempotency_key: str | None = None,
        **options: Unpack[JobOptions],
    ) -> AcceptedJob:
        """Request a generation: entries of the chain are tried in order until one produces files."""
        body = {"owner": owner, "chain": list(chain), **options}
        return cast(AcceptedJob, self._post("/v1/jobs", body, idempotency_key))

    def register_prediction(
        self, provider: str, external_id: str, *, owner: str, **options: Unpack[RegistrationOptions]
    ) -> AcceptedJob:
        """Register a prediction that the application started at a provider. A repeated registration changes nothing."""
        body = {"provider": provider, "external_id": external_id, "owner": owner, **options}
        return cast(AcceptedJob, self._request("POST", "/v1/predictions", body=body))

    def get_job(self, job_id: str, *, wait: float = 0.0) -> Job:
        """Return a job; with `wait`, after that many seconds (at most 60) or as soon as it is settled."""
        return self._get_job(job_id, wait)

    def wait(self, job_id: str, *, timeout: float = 600.0) -> Job:
        """
        Return a job when it is settled, in whatever state. Raises TimeoutError after `timeout` seconds.

        If moorage fails for longer than `retry_seconds`, which is less, its error is raised, as by `get_job`.
        """
        end = time.monotonic() + timeout
        while True:
            started = time.monotonic()
            left = max(0.0, end - started)
            try:
                job = self._get_job(job_id, min(_WAIT_SECONDS, left), end)
            except (requests.ConnectionError, requests.Timeout, MoorageError) as error:
                is_answer = isinstance(error, MoorageError) and error.status not in _RETRIED_STATUSES
                if is_answer or time.monotonic() < end:
                    raise
                raise TimeoutError(f"job {job_id} could not be read within {timeout:g} s: {error}") from error
            if job["settled_at"] is not None:
                return job
            if time.monotonic() >= end:
                raise TimeoutError(f"job {job_id} is {job['state']} after {timeout:g} s; it continues")
            # Above its limit of waiting requests the server answers at once.
            time.sleep(max(0.0, min(started + _ASK_AGAIN_SECONDS, end) - time.monotonic()))

    def iter_renders(self, **filters: Unpack[RenderFilter]) -> Iterator[Render]:
        """Yield published renders, newest first, page by page."""
        before: str | None = None
        while True:
            params = {**filters, **({} if before is None else {"before": before})}
            page = self._request("GET", "/v1/renders", params=cast(dict[str, str], params))
            yield from cast(list[Render], page["renders"])
            before = page["next"]
            if before is None:
                return

    def _get_job(self, job_id: str, wait: float, end: float = math.inf) -> Job:
        params = {"wait": f"{wait:g}"} if wait else {}
        return cast(Job, self._request("GET", f"/v1/jobs/{job_id}", params=params, extra_seconds=wait, end=end))

    def _post(self, path: str, body: Mapping[str, Any], key: str | None) -> Any:
        return self._request("POST", path, body=body, headers={"Idempotency-Key": key or str(uuid.uuid4())})

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        extra_seconds: float = 0.0,
        end: float = math.inf,  # of time.monotonic(), of all attempts
    ) -> Any:
        """Send a request, which must be safe to repeat, and return the JSON of its response."""
        last, pause = min(end, time.monotonic() + self._retry_seconds), 0.5
        while True:
            error: Exception
            left = max(0.0, end - time.monotonic()) + _ANSWER_SECONDS
            try:
                response = self._session.request(
                    method,
                    self._url + path,
                    params=params,
                    json=body,
                    headers={**self._headers, **(headers or {})},
                    timeout=min(self._timeout + extra_seconds, left),
                    allow_redirects=False,
                )
            except (requests.ConnectionError, requests.Timeout) as failure:
                error = failure
            else:
                if 200 <= response.status_code < 300:
                    return response.json()
                error = _build_error(response)
                if response.status_code not in _RETRIED_STATUSES:
                    raise error
                pause = max(pause, _read_retry_after(response))
            if time.monotonic() >= last:
                raise error
            time.sleep(max(0.0, min(pause, last - time.monotonic())))
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)


def verify_webhook(
    headers: Mapping[str, str], body: bytes, *secrets: str, tolerance_seconds: float = 300.0
) -> Notification:
    """
    Return a notification of moorage, signed as in Standard Webhooks 1.0.

    Raises InvalidSignature, and ValueError for a secret that is not "whsec_" and base64.

    `headers`: of the request, in any case; `body`: its raw bytes; `secrets`: MOORAGE_NOTIFY_SECRET, during a rotation
    several, separated by commas as in the setting or one by one.
    """
    keys = [_decode_secret(secret.strip()) for text in secrets for secret in text.split(",")]
    found = {name.lower(): value for name, value in headers.items()}
    try:
        webhook_id, timestamp, sent = (found[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
        age = abs(time.time() - int(timestamp))
    except KeyError as error:
        raise InvalidSignature(f"the header {error.args[0]} is missing") from error
    except (ValueError, OverflowError) as error:
        raise InvalidSignature("the time stamp is not a number of seconds") from error
    if age > tolerance_seconds:
        raise InvalidSignature(f"it was signed {age:.0f} s ago or ahead, more than {tolerance_seconds:g} s")
    signed = f"{webhook_id}.{timestamp}.".encode("utf-8", "surrogatepass") + body
    wanted = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)) for key in keys]
    given = [part[3:].encode("utf-8", "surrogatepass") for part in sent.split(" ") if part.startswith("v1,")]
    if not any(hmac.compare_digest(one, other) for one in wanted for other in given):
        raise InvalidSignature("no signature fits the body and a secret")
    return cast(Notification, json.loads(body))


def _decode_secret(secret: str) -> bytes:
    text = secret.removeprefix("whsec_").rstrip("=")
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        key = b""  # the message of the error could contain a part of it
    if not key:
        raise ValueError('a secret is not "whsec_" and base64, as in MOORAGE_NOTIFY_SECRET')
    return key


def _build_error(response: requests.Response) -> MoorageError:
    try:
        problem = response.json()
        detail, errors = str(problem["detail"]), problem.get("errors", [])
    except (ValueError, KeyError, TypeError, AttributeError):  # of a proxy
        detail, errors = response.text[:300], []
    return MoorageError(response.status_code, detail, errors, response.headers.get("X-Request-Id"))


def _read_retry_after(response: requests.Response) -> float:
    value = response.headers.get("Retry-After", "")
    return min(float(value), _MAX_PAUSE_SECONDS) if value.isascii() and value.isdigit() else 0.0
