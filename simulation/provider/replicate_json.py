"""JSON of Replicate's predictions, models and errors, in its API and its webhooks."""

import functools
import secrets
from datetime import UTC, datetime
from typing import Any, Final

from simulation.provider import schemas
from simulation.provider.http_types import Response, problem
from simulation.provider.ledger import format_time
from simulation.provider.models import Model
from simulation.provider.predictions import Dialect, Prediction, UrlBuilder
from simulation.provider.script import Script

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


def build_model(model: Model) -> dict[str, Any]:
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
        "latest_version": build_version(model),
    }


def build_version(model: Model) -> dict[str, Any]:
    return {
        "id": model.version,
        "created_at": "2026-01-01T00:00:00.000000Z",
        "cog_version": "0.16.0",
        "openapi_schema": schemas.openapi(model.fields, model.required, is_list=model.kind == "image"),
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
