"""GET /v1/models: the providers' models and their input schemas. Unavailable providers are listed, not waited for."""

import asyncio
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from moorage.errors import ProviderRefused, ProviderUnavailable
from moorage.text import is_storable, to_storable
from providers.base import Provider
from web.http import ids, problems, query
from web.http.problems import Problem
from web.services import context, model_cache
from web.services.context import AppContext

MODEL_FIELDS: Final = ("name", "description", "kind", "accepts", "picture_field")


async def list_models(request: Request) -> Response:
    """Return the models of all providers that accept submissions, and the providers that are unavailable."""
    ctx = context.get_context(request)
    params = query.parse_query(request, query.ModelQuery)
    kinds = (params.kind,) if params.kind else ("image", "video")
    if params.provider is not None:
        ctx.get_provider(params.provider)
    providers = [p for p in ctx.providers.values() if p.can_submit and params.provider in (None, p.name)]
    results = await asyncio.gather(*(_fetch_models(ctx, provider, kind) for provider in providers for kind in kinds))
    models = [model for models_of_kind, _ in results for model in models_of_kind]
    errors = {error["provider"]: error for _, error in results if error}
    return problems.json_response(200, {"models": models, "unavailable": list(errors.values())})


async def _fetch_models(
    ctx: AppContext, provider: Provider, kind: str
) -> tuple[list[dict[str, Any]], dict[str, str] | None]:
    try:
        models = await ctx.model_cache.get_models(provider, kind)
    except ProviderUnavailable as error:
        return [], {"provider": provider.name, "message": model_cache.describe_outage(provider.name, error)}
    except ProviderRefused as error:
        return [], {"provider": provider.name, "message": to_storable(str(error), 500)}
    return [{"provider": provider.name, **{name: model.get(name) for name in MODEL_FIELDS}} for model in models], None


async def get_model_schema(request: Request) -> Response:
    """Return the JSON Schema of a model's input."""
    ctx = context.get_context(request)
    provider = ctx.get_provider(query.parse_query(request, query.SchemaQuery).provider)
    model = "{owner}/{name}".format(**request.path_params)
    if not is_storable(model):
        raise ids.not_found("model")
    try:
        schema = await ctx.model_cache.get_schema(provider, model)
    except ProviderUnavailable as error:
        raise problems.unavailable(model_cache.describe_outage(provider.name, error)) from error
    except ProviderRefused as error:
        raise Problem(404, to_storable(str(error), 500)) from error
    if schema is None:
        raise Problem(404, f"{provider.name} publishes no schema of {to_storable(model, 200)}")
    return problems.json_response(200, {"provider": provider.name, "model": model, "schema": schema})
