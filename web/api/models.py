"""GET /v1/models: the providers' models and their input schemas. Unavailable providers are listed, not waited for."""

import asyncio
from typing import Any, Final

from moorage.errors import ProviderRefused, ProviderUnavailable
from moorage.text import is_storable, to_storable
from providers.base import Provider
from web.api.responses import ModelPage, ModelSchema
from web.http import problems
from web.http.permissions import Level
from web.http.problems import Problem
from web.http.query import Filters, ModelQuery, SchemaQuery
from web.http.router import Router
from web.services import model_cache
from web.services.context import AnyCaller, AppContext, Context

router: Final = Router(prefix="/models", tags=["models"])

MODEL_FIELDS: Final = ("name", "description", "kind", "accepts", "picture_field")


@router.get("", response_description="models by provider")
async def list_models(params: Filters[ModelQuery], ctx: Context) -> ModelPage:
    """Return the models of all providers that accept submissions, and the providers that are unavailable."""
    kinds = (params.kind,) if params.kind else ("image", "video")
    if params.provider is not None:
        ctx.get_provider(params.provider)
    providers = [p for p in ctx.providers.values() if p.can_submit and params.provider in (None, p.name)]
    results = await asyncio.gather(*(_fetch_models(ctx, provider, kind) for provider in providers for kind in kinds))
    models = [model for models_of_kind, _ in results for model in models_of_kind]
    errors = {error["provider"]: error for _, error in results if error}
    return ModelPage.model_validate({"models": models, "unavailable": list(errors.values())})


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


@router.get("/{model:path}/schema", response_description="the schema")
async def get_model_schema(model: str, params: Filters[SchemaQuery], caller: AnyCaller, ctx: Context) -> ModelSchema:
    """Return the JSON Schema of a model's input. The name of a model may have slashes."""
    provider = ctx.get_provider(params.provider)
    if not is_storable(model) or (caller.level is Level.OWNER and model not in provider.models):
        raise problems.not_found("model")
    try:
        schema = await ctx.model_cache.get_schema(provider, model)
    except ProviderUnavailable as error:
        raise problems.unavailable(model_cache.describe_outage(provider.name, error)) from error
    except ProviderRefused as error:
        raise Problem(404, to_storable(str(error), 500)) from error
    if schema is None:
        raise Problem(404, f"{provider.name} publishes no schema of {to_storable(model, 200)}")
    return ModelSchema(provider=provider.name, model=model, schema=dict(schema))
