"""Replicate's HTTP API under /v1, without HTTP: a request's parts in, status and JSON out."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

from simulation.provider import answers, catalogue, faults, models, schemas
from simulation.provider.exchange import (
    Answer,
    Refused,
    Request,
    is_authorized,
    is_url,
    json_object,
    not_found,
    problem,
)
from simulation.provider.prediction import Prediction
from simulation.provider.predictions import Predictions
from simulation.provider.submissions import Order, Submissions

_PAGE: Final = 100
_DEFAULT_MODEL: Final = "standin/pictures"  # of a version that the stand-in does not know; it takes any input


class ReplicateApi:
    """Predictions, their list and cancellation, models and their schemas."""

    def __init__(
        self, predictions: Predictions, submissions: Submissions, files: tuple[str, ...], *,
        token: str, secret: str, base_url: str,
    ) -> None:  # fmt: skip
        self._predictions = predictions
        self._submissions = submissions
        self._files = files
        self._token = token
        self._secret = secret
        self._base_url = base_url
        self._dialect = answers.ReplicateDialect(base_url)

    def admit(self, request: Request) -> None:
        """Raise Refused without the right key."""
        if not is_authorized(request, f"Bearer {self._token}"):
            raise Refused(problem(401, "Unauthenticated", "You did not pass a valid authentication token."))

    def answer(self, request: Request) -> Answer:
        """Return the answer to one request; raises Refused."""
        if request.method == "POST":
            return self._post(request)
        match request.method, request.steps:
            case "GET", ["predictions"]:
                return self._list(request.query)
            case "GET", ["predictions", one]:
                prediction = self._find(one)
                self._predictions.renew(prediction)
                return Answer(200, self._show(prediction))
            case "GET", ["webhooks", "default", "secret"]:
                return Answer(200, {"key": self._secret})
            case "GET", ["models" | "collections", *rest]:
                return catalogue.answer(request.steps[0], rest)
            case _:
                raise not_found()

    def _post(self, request: Request) -> Answer:
        match request.steps:
            case ["predictions"]:
                asked = json_object(request.body)
                version = asked.get("version")
                if not isinstance(version, str):
                    raise _invalid("version is required")
                model = models.of_version(version)
                return self._create(asked, model.name if model else _DEFAULT_MODEL, model, version)
            case ["models" | "deployments" as kind, owner, name, "predictions"]:
                full = f"{owner}/{name}"
                deployment = full if kind == "deployments" else None
                return self._create(json_object(request.body), full, models.named(full), "hidden", deployment)
            case ["predictions", one, "cancel"]:
                prediction = self._find(one)
                self._predictions.cancel(prediction)
                return Answer(200, self._show(prediction))
            case _:
                raise not_found()

    def _create(
        self, asked: dict[str, Any], name: str, model: models.Model | None, version: str, deployment: str | None = None
    ) -> Answer:
        given, hook, events = asked.get("input"), asked.get("webhook"), asked.get("webhook_events_filter")
        _check(given, hook, events)
        plan = _plan(model, given or {}, self._files)
        order = Order("replicate", name, given or {}, hook)

        def make(fault: str) -> tuple[str, Answer]:
            made = self._predictions.create(
                self._dialect, plan, dict(order.asked), model=name, version=version, deployment=deployment,
                events=events, webhook=None if fault == "not_echoed" else hook,
            )  # fmt: skip
            return made.id, Answer(201, self._show(made))

        return self._submissions.take(order, plan, _refusal, make)

    def _find(self, prediction_id: str) -> Prediction:
        found = self._predictions.find("replicate", prediction_id)
        if found is None:
            raise not_found()
        return found

    def _show(self, prediction: Prediction) -> dict[str, Any]:
        return self._predictions.see(prediction, self._dialect.told)

    def _list(self, query: dict[str, list[str]]) -> Answer:
        times: dict[str, str] = {name: query[name][0] for name in ("created_after", "created_before") if name in query}
        after, before = _moment(times, "created_after"), _moment(times, "created_before")
        found = self._predictions.newest_first("replicate", after, before)
        start = _cursor(query, found)
        page = found[start : start + _PAGE]
        more, newer = found[start + _PAGE :], found[max(0, start - _PAGE) : start]
        return Answer(
            200,
            {
                "previous": self._page(times, newer[0].number) if newer else None,
                "next": self._page(times, more[0].number) if more else None,
                "results": [self._show(one) for one in page],
            },
        )

    def _page(self, times: dict[str, str], cursor: int) -> str:
        return f"{self._base_url}/v1/predictions?{urlencode({**times, 'cursor': cursor})}"


def _check(given: object, hook: object, events: object) -> None:
    if not isinstance(given, dict):
        raise _invalid("input is required")
    if hook is not None and not is_url(hook):
        raise _invalid("webhook must be an http:// or https:// URL")
    known = answers.EVENTS
    if events is not None and not (isinstance(events, list) and all(event in known for event in events)):
        raise _invalid(f"webhook_events_filter must be a list out of {', '.join(known)}")


def _plan(model: models.Model | None, given: Mapping[str, Any], files: tuple[str, ...]) -> faults.Plan:
    """Return the script of an order; raises Refused for an input that the model's schema does not allow."""
    wrong = schemas.problems(model.fields, model.required, given) if model else []
    if wrong:
        places = [(".".join(("input", *([name] if name else []))), told) for name, told in wrong]
        raise Refused(
            problem(
                422,
                "Input validation failed",
                "".join(f"- {place}: {told}\n" for place, told in places),
                invalid_fields=[{"type": "invalid", "field": place, "description": told} for place, told in places],
            )
        )
    try:
        return faults.plan(given.get("standin"), files, models.nature(model, given, files))
    except faults.PlanError as error:
        raise _invalid(str(error)) from error


def _refusal(fault: str, plan: faults.Plan) -> Answer:
    match fault:
        case "busy":
            wait = f"{plan.retry_after_s:g}"
            told = problem(429, "Too Many Requests", f"Request was throttled. Your rate limit resets in ~{wait}s.")
            return Answer(429, told.body, {**told.headers, "Retry-After": wait})
        case "no_credit":
            return problem(402, "Insufficient credit", "You have insufficient credit to run this model.")
        case "invalid":
            return problem(422, "Input validation failed", "- input: prompt is required\n")
        case _:
            return problem(500, "Internal Server Error", "Something went wrong on our side.")


def _cursor(query: dict[str, list[str]], found: list[Prediction]) -> int:
    """Return the place of the page's first prediction; newer ones made meanwhile do not shift it."""
    if "cursor" not in query:
        return 0
    text = query["cursor"][0]
    if not (text.isascii() and text.isdigit()):
        raise _invalid("cursor is not one of ours")
    return next((place for place, one in enumerate(found) if one.number <= int(text)), len(found))


def _moment(times: dict[str, str], name: str) -> datetime | None:
    if name not in times:
        return None
    try:
        at = datetime.fromisoformat(times[name].replace(" ", "+"))  # a + that was not escaped arrives as a blank
    except ValueError as error:
        raise _invalid(f"{name} is not an ISO 8601 time") from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _invalid(detail: str) -> Refused:
    return Refused(problem(422, "Input validation failed", detail))
