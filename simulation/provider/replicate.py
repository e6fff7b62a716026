"""Replicate's API under /v1: predictions, their list and cancellation, models."""

import functools
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

from simulation.provider import models
from simulation.provider.http_types import Api, Refused, Request, Response, is_url, not_found, parse_object, problem
from simulation.provider.ledger import format_time
from simulation.provider.models import Model
from simulation.provider.predictions import Dialect, Prediction, Predictions, UrlBuilder
from simulation.provider.script import Script, ScriptError, parse_script

_PAGE_SIZE: Final = 100
_DEFAULT_MODEL: Final = "standin/pictures"  # name of a prediction with an unknown version, which accepts any input


class ReplicateApi(Api):
    def __init__(self, predictions: Predictions, *, token: str, base_url: str) -> None:
        super().__init__(f"Bearer {token}")
        self._predictions, self._base_url, self._dialect = predictions, base_url, build_dialect(base_url)

    def handle(self, request: Request) -> Response:
        if request.method == "POST":
            return self._post(request)
        match request.method, request.steps:
            case "GET", ["predictions"]:
                return self._list(request.query)
            case "GET", ["predictions", prediction_id]:
                prediction = self._find(prediction_id)
                self._predictions.renew_urls(prediction)
                return Response(200, self._build_body(prediction))
            case "GET", ["models", owner, name, *rest] if model := models.MODELS.get(f"{owner}/{name}"):
                if rest in ([], ["versions", model.version]):
                    return Response(200, _build_version(model) if rest else _build_model(model))
        raise not_found()

    def _post(self, request: Request) -> Response:
        match request.steps:
            case ["predictions"]:
                body = parse_object(request.body)
                version = body.get("version")
                if not isinstance(version, str):
                    raise _invalid("version is required")
                model = models.find_by_version(version)
                return self._create(body, model.name if model else _DEFAULT_MODEL, model, version)
            case ["models" | "deployments" as kind, owner, name, "predictions"]:
                full_name = f"{owner}/{name}"
                deployment = full_name if kind == "deployments" else None
                body, model = parse_object(request.body), models.find_by_name(full_name)
                return self._create(body, full_name, model, "hidden", deployment)
            case ["predictions", prediction_id, "cancel"]:
                prediction = self._find(prediction_id)
                self._predictions.cancel(prediction)
                return Response(200, self._build_body(prediction))
            case _:
                raise not_found()

    def _create(
        self, body: dict[str, Any], name: str, model: Model | None, version: str, deployment: str | None = None
    ) -> Response:
        webhook, events = body.get("webhook"), body.get("webhook_events_filter")
        input_ = _check(body.get("input"), webhook, events)
        script = _parse_script(model, input_, self._predictions.files)
        return self._predictions.submit(
            self._dialect, name, input_, script, webhook=webhook, version=version,
            deployment=deployment, events=None if events is None else tuple(events),
            build_response=lambda created: Response(201, self._build_body(created)),
        )  # fmt: skip

    def _find(self, prediction_id: str) -> Prediction:
        prediction = self._predictions.find("replicate", prediction_id)
        if prediction is None:
            raise not_found()
        return prediction

    def _build_body(self, prediction: Prediction) -> dict[str, Any]:
        return self._predictions.read(prediction, self._dialect.build_body)

    def _list(self, query: dict[str, list[str]]) -> Response:
        times: dict[str, str] = {name: query[name][0] for name in ("created_after", "created_before") if name in query}
        after, before = _parse_time(times, "created_after"), _parse_time(times, "created_before")
        listed = self._predictions.list_newest_first("replicate", after, before)
        start = _find_cursor(query, listed)
        older = listed[start + _PAGE_SIZE :]
        results = [self._build_body(prediction) for prediction in listed[start : start + _PAGE_SIZE]]
        url = f"{self._base_url}/v1/predictions?{urlencode({**times, 'cursor': older[0].number})}" if older else None
        return Response(200, {"previous": None, "next": url, "results": results})


def _check(input_: object, webhook: object, events: object) -> dict[str, Any]:
    """Return a valid input."""
    if not isinstance(input_, dict):
        raise _invalid("input is required")
    if webhook is not None and not is_url(webhook):
        raise _invalid("webhook must be an http:// or https:// URL")
    if events is not None and not (isinstance(events, list) and all(event in EVENTS for event in events)):
        raise _invalid(f"webhook_events_filter must be a list out of {', '.join(EVENTS)}")
    return input_


def _parse_script(model: Model | None, input_: Mapping[str, Any], files: tuple[str, ...]) -> Script:
    """Return the script of a submission; raise Refused for an input that violates the model's schema."""
    violations = models.find_violations(model.fields, model.required, input_) if model else []
    if violations:
        errors = [(".".join(("input", *([name] if name else []))), message) for name, message in violations]
        detail = "".join(f"- {field}: {message}\n" for field, message in errors)
        fields = [{"type": "invalid", "field": field, "description": message} for field, message in errors]
        raise Refused(problem(422, "Input validation failed", detail, invalid_fields=fields))
    try:
        return parse_script(input_.get("standin"), files, models.script_defaults(model, input_, files))
    except ScriptError as error:
        raise _invalid(str(error)) from error


def _find_cursor(query: dict[str, list[str]], listed: list[Prediction]) -> int:
    """Return the index of the page's first prediction; predictions created since the last page do not shift it."""
    if "cursor" not in query:
        return 0
    text = query["cursor"][0]
    if not (text.isascii() and text.isdigit()):
        raise _invalid("cursor is invalid")
    return next((index for index, prediction in enumerate(listed) if prediction.number <= int(text)), len(listed))


def _parse_time(times: dict[str, str], name: str) -> datetime | None:
    if name not in times:
        return None
    try:
        time = datetime.fromisoformat(times[name].replace(" ", "+"))  # an unescaped + arrives as a space
    except ValueError as error:
        raise _invalid(f"{name} is not an ISO 8601 time") from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _invalid(detail: str) -> Refused:
    return Refused(problem(422, "Input validation failed", detail))


EVENTS: Final = ("start", "output", "logs", "completed")
_ID_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"
_ERRORS: Final = {"failed": "CUDA out of memory", "aborted": "the deadline passed before the prediction started"}


def build_dialect(base_url: str) -> Dialect:
    """Return the dialect, which sends the prediction object itself at four kinds of events, by default at two."""
    return Dialect(
        "replicate",
        new_id=lambda: "".join(_ID_LETTERS[byte % 32] for byte in secrets.token_bytes(26)),
        build_body=functools.partial(_build_prediction, base_url),
        build_error=_build_error,
        path="output[{}]",
        paths={"string": "output", "nested": "output.images[{}].url"},
        events=EVENTS,
        default_events=("output", "completed"),
    )


def _build_prediction(base_url: str, prediction: Prediction, url: UrlBuilder) -> dict[str, Any]:
    is_removed = prediction.is_removed(datetime.now(UTC))
    own, web = f"{base_url}/v1/predictions/{prediction.id}", f"{base_url}/p/{prediction.id}"
    return {
        "id": prediction.id,
        "model": prediction.model,
        "version": prediction.version,
        "status": prediction.status,
        "input": {} if is_removed else prediction.input,
        "output": None if is_removed else _build_output(prediction, url),
        "error": prediction.error or _ERRORS.get(prediction.status),
        "logs": None if is_removed else prediction.logs or None,
        "metrics": _build_metrics(prediction),
        "created_at": format_time(prediction.created_at),
        "started_at": prediction.started_at and format_time(prediction.started_at),
        "completed_at": prediction.completed_at and format_time(prediction.completed_at),
        "data_removed": is_removed,
        "deadline": None,
        "deployment": prediction.deployment,
        "source": "api",
        "urls": {"get": own, "cancel": f"{own}/cancel", "stream": f"{own}/stream", "web": web},
        "webhook": prediction.webhook,
        "webhook_events_filter": None if prediction.events is None else list(prediction.events),
    }


def _build_error(fault: str, script: Script) -> Response:
    match fault:
        case "busy":
            wait = f"{script.retry_after_s:g}"
            error = problem(429, "Too Many Requests", f"Request was throttled. Your rate limit resets in ~{wait}s.")
            return Response(429, error.body, {**error.headers, "Retry-After": wait})
        case "no_credit":
            return problem(402, "Insufficient credit", "You have insufficient credit to run this model.")
        case "invalid":
            return problem(422, "Input validation failed", "- input: prompt is required\n")
        case _:
            return problem(500, "Internal Server Error", "Something went wrong on our side.")


def _build_model(model: Model) -> dict[str, Any]:
    owner, _, name = model.name.partition("/")
    absent = ("github_url", "paper_url", "license_url", "cover_image_url", "default_example")
    return {
        "url": f"https://replicate.com/{model.name}",
        "owner": owner,
        "name": name,
        "description": model.description,
        "visibility": "public",
        "run_count": 0,
        **dict.fromkeys(absent),
        "latest_version": _build_version(model),
    }


def _build_version(model: Model) -> dict[str, Any]:
    return {
        "id": model.version,
        "created_at": "2026-01-01T00:00:00.000000Z",
        "cog_version": "0.16.0",
        "openapi_schema": models.openapi(model.fields, model.required, is_list=model.kind == "image"),
    }


def _build_output(prediction: Prediction, url: UrlBuilder) -> Any:
    has_succeeded = prediction.status == "succeeded"
    if has_succeeded and prediction.script.shape == "text":
        return "A harbour at dawn. More on https://example.com/harbours today."
    urls = [url(output) for output in prediction.visible_outputs]
    if not urls:
        return [] if has_succeeded and prediction.script.shape in ("list", "data") else None
    match prediction.script.shape:
        case "string":
            return urls[0]
        case "nested":  # the seed is above 2**53, as some models return it
            return {"images": [{"url": one, "safe": True} for one in urls], "seed": 196619188014358660}
        case _:
            return urls


def _build_metrics(prediction: Prediction) -> dict[str, float]:
    if prediction.completed_at is None:
        return {}
    started_at = prediction.started_at or prediction.completed_at
    return {
        "predict_time": (prediction.completed_at - started_at).total_seconds(),
        "total_time": (prediction.completed_at - prediction.created_at).total_seconds(),
    }
