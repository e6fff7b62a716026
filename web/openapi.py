"""
GET /openapi.json: FastAPI's OpenAPI 3.1 document, with levels, credentials and bodies; /docs: the same as a page.

`openapi_base.json` has what FastAPI cannot know: the receiver, notifications, problems, credentials, forms, examples.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from moorage import VERSION
from web import routes
from web.api.job_schema import JobCreate
from web.http.json_body import JsonBody
from web.http.permissions import Level, find_scope
from web.page import views
from web.services import context
from web.services.context import RequireLevel

PATH: Final = "/openapi.json"
REFERENCE_PATH: Final = "/docs"
_POLICY: Final = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_BASE: Final = Path(__file__).with_name("openapi_base.json")
_REF: Final = "#/components/schemas/{model}"
_HEADERS: Final = {  # of 2xx responses, by operation
    **dict.fromkeys(("createJob", "registerPrediction", "keepFiles", "createUpload"), ("Location",)),
    **dict.fromkeys(("getProject", "putProject", "addScene", "reorderScenes"), ("ETag",)),
    "getAsset": ("ETag", "Content-Range"),
}
_LEVELS: Final = {
    Level.OPEN: "Level open: no token is required.",
    Level.OWNER: "Level owner: an owner token is sufficient, and sees that owner's rows only.",
    Level.APPLICATION: "Level application: an owner token is rejected (403).",
    Level.VIEWER: "Level viewer: a token of the role viewer or admin, or MOORAGE_API_TOKEN; others are rejected (403).",
    Level.ADMIN: "Level admin: MOORAGE_API_TOKEN, or a token of the role admin; others are rejected (403).",
}


@functools.cache
def build_document() -> dict[str, Any]:
    """Return the document; `/api/v1` serves the same paths as `/v1`."""
    router = routes.build_router()
    base: dict[str, Any] = json.loads(_BASE.read_text(encoding="utf-8"))
    described = get_openapi(title="moorage", version=VERSION, routes=router.routes)
    models: list[type[BaseModel]] = [JobCreate]
    for route in iter_route_contexts(router.routes):
        if route.include_in_schema:
            for method in route.methods or ():
                operation = described["paths"][route.path_format][method.lower()]
                models += _describe_operation(operation, route.dependant)
                if operation["x-level"] == "owner":
                    operation["x-scope"] = find_scope(method, str(route.path_format))
                    operation["description"] += f" Its scope: {operation['x-scope']}."
                _describe_headers(operation)
                operation |= base["paths"].get(route.path_format, {}).get(method.lower(), {})
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    base["info"] |= described["info"]
    base["paths"] |= described["paths"]
    for name, schema in (described["components"]["schemas"] | schemas["$defs"]).items():
        base["components"]["schemas"][name] = schema | base["components"]["schemas"].get(name, {})
    return {"openapi": described["openapi"], **base}


def document_json() -> str:
    return json.dumps(build_document(), indent=2)


def get_level(dependant: Dependant) -> Level:
    """Return the minimum level that the dependencies of a route require."""
    calls = list(_list_calls(dependant))
    levels = [call.level for call in calls if isinstance(call, RequireLevel)]
    return max([Level.OWNER, *levels]) if context.authenticate in calls else Level.OPEN


def _describe_operation(operation: dict[str, Any], dependant: Dependant) -> list[type[BaseModel]]:
    """Add level, credentials and body to an operation; return the models of its body."""
    level = get_level(dependant)
    operation |= {"description": _LEVELS[level], "x-level": level.name.lower()}
    operation.setdefault("parameters", [])
    if level is Level.OPEN:
        operation["security"] = []
    elif level > Level.OWNER or operation["operationId"] == "createSession":
        operation["security"] = [{"token": []}]
    models = [call.model for call in _list_calls(dependant) if isinstance(call, JsonBody)]
    for model in models:
        schema = {"$ref": _REF.format(model=model.__name__)}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return models


def _describe_headers(operation: dict[str, Any]) -> None:
    """Add the headers of each response."""
    for status, response in operation["responses"].items():
        names = ["X-Request-Id"]
        if status == "default":
            names += ["Retry-After", "WWW-Authenticate", "Allow"]
        else:
            names += _HEADERS.get(operation["operationId"], ())
        response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _list_calls(dependant: Dependant) -> Iterator[Any]:
    for dependency in dependant.dependencies:
        yield dependency.call
        yield from _list_calls(dependency)


async def get_reference() -> Response:
    """Return the document as a page, rendered on the server, without scripts."""
    headers = {**views.SECURITY_HEADERS, "Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
    return Response(_render(), media_type="text/html", headers=headers)


@functools.cache
def _render() -> str:
    document = build_document()
    operations = [
        {"method": method.upper(), "path": path, "tag": operation["tags"][0], **operation}
        for path, item in [*document["paths"].items(), *document["webhooks"].items()]
        for method, operation in item.items()
    ]
    return views.render_template("reference.html", document=document, operations=operations)
