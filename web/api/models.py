"""GET /v1/models: what providers offer, and what their models take. A provider that is away is told, not waited for."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from moorage.errors import ProviderRefused, ProviderUnavailable
from moorage.text import is_storable, to_storable
from providers.base import Provider
from web.http import ids, problems, query, validation
from web.http.problems import Problem
from web.services import context, model_cache

MODEL_FIELDS = ("name", "description", "kind", "accepts", "picture_field")


async def list_models(request: Request) -> Response:
    """Answer 200 with the models of all providers that take orders, and with those that cannot be asked now."""
    at = context.get_context(request)
    wanted = query.parse_query(request, query.ModelQuery)
    kinds = (wanted.kind,) if wanted.kind else ("image", "video")
    chosen = _select_providers(at, wanted.provider)
    told = await asyncio.gather(*(_fetch_models(at, provider, kind) for provider in chosen for kind in kinds))
    away = {error["provider"]: error for _, error in told if error}
    models = [model for found, _ in told for model in found]
    return problems.json_response(200, {"models": models, "unavailable": list(away.values())})


def _select_providers(at: context.AppContext, name: str | None) -> list[Provider]:
    if name is not None and name not in at.providers:
        raise validation.invalid_field("provider", f"does not exist: write one of {', '.join(sorted(at.providers))}")
    return [p for p in at.providers.values() if p.can_submit and name in (None, p.name)]


async def _fetch_models(
    at: context.AppContext, provider: Provider, kind: str
) -> tuple[list[dict[str, Any]], dict[str, str] | None]:
    try:
        found = await at.model_cache.get_models(provider, kind)
    except ProviderUnavailable as error:
        return [], {"provider": provider.name, "message": model_cache.describe_outage(provider.name, error)}
    except ProviderRefused as error:
        return [], {"provider": provider.name, "message": to_storable(str(error), 500)}
    return [{"provider": provider.name, **{name: model.get(name) for name in MODEL_FIELDS}} for model in found], None


async def get_model_schema(request: Request) -> Response:
    """Answer 200 with the JSON Schema of a model's input, 404 where there is none, 503 while it cannot be had."""
    at = context.get_context(request)
    wanted = query.parse_query(request, query.SchemaQuery)
    model = "{owner}/{name}".format(**request.path_params)
    provider = at.providers.get(wanted.provider)
    if provider is None:
        raise validation.invalid_field("provider", f"does not exist: write one of {', '.join(sorted(at.providers))}")
    if not is_storable(model):
        raise ids.not_found("model")
    try:
        found = await at.model_cache.get_schema(provider, model)
    except ProviderUnavailable as error:
        raise problems.unavailable(model_cache.describe_outage(provider.name, error)) from error
    except ProviderRefused as error:
        raise Problem(404, to_storable(str(error), 500)) from error
    if found is None:
        raise Problem(404, f"{provider.name} offers no schema of {to_storable(model, 200)}")
    return problems.json_response(200, {"provider": provider.name, "model": model, "schema": found})
