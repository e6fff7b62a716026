"""The HTTP API without HTTP: a request's parts in, status and JSON out."""

import hmac
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

from embedded.standin import faults, webhooks
from embedded.standin.ledger import Ledger, summarise
from embedded.standin.outages import Outages
from embedded.standin.predictions import EVENTS, Predictions

_PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and the JSON of the body."""

    status: int
    body: dict[str, Any]


class Problem(Exception):
    """An answer of 4xx or 5xx, as `{"title", "detail", "status"}`."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.answer: Final = Answer(status, {"title": title, "detail": detail, "status": status})


class Api:
    """Replicate's endpoints under /v1, and the controls under /standin."""

    def __init__(
        self,
        predictions: Predictions,
        sender: webhooks.Sender,
        ledger: Ledger,
        outages: Outages,
        *,
        token: str,
        secret: str,
        base_url: str,
    ) -> None:
        self._predictions = predictions
        self._sender = sender
        self._ledger = ledger
        self._outages = outages
        self._token = token
        self._secret = secret
        self._base_url = base_url

    def answer(self, method: str, target: str, authorization: str | None, body: bytes) -> Answer:
        """Return the answer to one request; errors are answers too."""
        try:
            self._admit(authorization)
            parts = urlsplit(target)
            steps = [step for step in parts.path.split("/") if step]
            if steps[:1] == ["standin"]:
                return self._control(method, steps[1:], body)
            if self._outages.api():
                raise Problem(503, "Service Unavailable", "The API is away for a while.")
            if steps[:1] == ["v1"]:
                return self._v1(method, steps[1:], parse_qs(parts.query), body)
            raise _not_found()
        except Problem as problem:
            return problem.answer

    def _admit(self, authorization: str | None) -> None:
        wanted = f"Bearer {self._token}".encode()
        if not hmac.compare_digest(wanted, (authorization or "").encode("utf-8", "replace")):
            raise Problem(401, "Unauthenticated", "You did not pass a valid authentication token.")

    def _v1(self, method: str, steps: list[str], query: dict[str, list[str]], body: bytes) -> Answer:
        match method, steps:
            case "POST", ["predictions"]:
                return self._create(body, model="standin/pictures")
            case "POST", ["models" | "deployments", owner, name, "predictions"]:
                return self._create(body, model=f"{owner}/{name}")
            case "GET", ["predictions"]:
                return self._list(query)
            case "GET", ["predictions", one]:
                return _found(self._predictions.get(one))
            case "POST", ["predictions", one, "cancel"]:
                return _found(self._predictions.cancel(one))
            case "GET", ["webhooks", "default", "secret"]:
                return Answer(200, {"key": self._secret})
            case _:
                raise _not_found()

    def _create(self, body: bytes, *, model: str) -> Answer:
        asked = _object(body)
        version = asked.get("version", "hidden" if model != "standin/pictures" else None)
        given, hook, events = asked.get("input"), asked.get("webhook"), asked.get("webhook_events_filter")
        if not isinstance(version, str):
            raise _invalid("version is required")
        if not isinstance(given, dict):
            raise _invalid("input is required")
        if hook is not None and not _is_url(hook):
            raise _invalid("webhook must be an http:// or https:// URL")
        if events is not None and not (isinstance(events, list) and all(event in EVENTS for event in events)):
            raise _invalid(f"webhook_events_filter must be a list out of {', '.join(EVENTS)}")
        try:
            made = self._predictions.create(given, version=version, model=model, webhook=hook, events=events)
        except faults.PlanError as error:
            raise _invalid(str(error)) from error
        return Answer(201, made)

    def _list(self, query: dict[str, list[str]]) -> Answer:
        times: dict[str, str] = {name: query[name][0] for name in ("created_after", "created_before") if name in query}
        found = self._predictions.newest_first(_moment(times, "created_after"), _moment(times, "created_before"))
        start = _cursor(query, len(found), [number for number, _ in found])
        page = found[start : start + _PAGE]
        more, before = found[start + _PAGE :], found[max(0, start - _PAGE) : start]
        return Answer(
            200,
            {
                "previous": self._page(times, before[0][0]) if before else None,
                "next": self._page(times, more[0][0]) if more else None,
                "results": [self._predictions.show(one) for _, one in page],
            },
        )

    def _page(self, times: dict[str, str], cursor: int) -> str:
        return f"{self._base_url}/v1/predictions?{urlencode({**times, 'cursor': cursor})}"

    def _control(self, method: str, steps: list[str], body: bytes) -> Answer:
        if (method, steps) == ("GET", ["ledger"]):
            lines = self._ledger.lines()
            return Answer(200, {"summary": summarise(lines), "lines": lines})
        if method == "POST" and steps in (["outage"], ["silence"]):
            asked = _object(body)
            seconds = asked.get("seconds")
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0:
                raise _invalid("seconds must be a number, 0 or more")
            if steps == ["silence"]:
                self._sender.silence(seconds)
            else:
                self._outages.begin(seconds, outputs=asked.get("outputs") is True)
            return Answer(200, {"seconds": seconds})
        raise _not_found()


def _cursor(query: dict[str, list[str]], end: int, numbers: list[int]) -> int:
    """Return the place of the page's first prediction; newer ones made meanwhile do not shift it."""
    if "cursor" not in query:
        return 0
    text = query["cursor"][0]
    if not (text.isascii() and text.isdigit()):
        raise _invalid("cursor is not one of ours")
    return next((place for place, number in enumerate(numbers) if number <= int(text)), end)


def _moment(times: dict[str, str], name: str) -> datetime | None:
    if name not in times:
        return None
    try:
        at = datetime.fromisoformat(times[name].replace(" ", "+"))  # a + that was not escaped arrives as a blank
    except ValueError as error:
        raise _invalid(f"{name} is not an ISO 8601 time") from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _is_url(value: object) -> bool:
    if not isinstance(value, str) or not value.isascii() or not value.startswith(("http://", "https://")):
        return False
    try:
        parts = urlsplit(value)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _object(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "Bad Request", "The body is not JSON.") from error
    if not isinstance(asked, dict):
        raise Problem(400, "Bad Request", "The body is not a JSON object.")
    return asked


def _found(prediction: dict[str, Any] | None) -> Answer:
    if prediction is None:
        raise _not_found()
    return Answer(200, prediction)


def _not_found() -> Problem:
    return Problem(404, "Not Found", "The requested resource could not be found.")


def _invalid(detail: str) -> Problem:
    return Problem(422, "Input validation failed", detail)
