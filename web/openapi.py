"""GET /openapi.json: the OpenAPI 3.1 document, generated from the route table and the request models."""

import json
import re
from typing import Any, Final

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from moorage import VERSION
from web import routes
from web.api import session
from web.http import session_cookie
from web.http.permissions import Level
from web.routes import Operation

PATH: Final = "/openapi.json"
_REF: Final = "#/components/schemas/{model}"
_PROBLEM: Final = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "urn:moorage:problem: and the kind of problem"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "the problem and the remedy"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}
_SCHEMES: Final = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "MOORAGE_API_TOKEN, a token of POST /v1/tokens, or an owner token of POST /v1/owner-tokens",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": session_cookie.HTTPS_COOKIE,
        "description": "an owner token, set by POST /v1/session; `moorage` if PUBLIC_URL is not https. Requests"
        " that change data must come from the same origin",
    },
}
_LEVELS: Final = {
    Level.OPEN: "Level open: no token is required.",
    Level.OWNER: "Level owner: an owner token is sufficient, and sees that owner's rows only.",
    Level.APPLICATION: "Level application: an owner token is rejected (403).",
    Level.ADMIN: "Level admin: MOORAGE_API_TOKEN, or a token of the role admin; others are rejected (403).",
}


def build_document() -> dict[str, Any]:
    """Return the document; `/api/v1` serves the same paths as `/v1`."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in routes.OPERATIONS:
        paths.setdefault(routes.PREFIXES[0] + operation.path, {})[operation.method.lower()] = _describe_operation(
            operation
        )
    return {
        "openapi": "3.1.0",
        "info": {"title": "moorage", "version": VERSION, "license": {"name": "MIT", "identifier": "MIT"}},
        "servers": [{"url": "/"}],
        "security": [{"token": []}, {"session": []}],
        "paths": paths,
        "components": {"schemas": {"Problem": _PROBLEM, **_body_schemas()}, "securitySchemes": _SCHEMES},
    }


async def get_openapi(_request: Request) -> Response:
    """Return this document."""
    return Response(document_json(), media_type="application/json")


def document_json() -> str:
    return json.dumps(build_document(), indent=2)


def _describe_operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.operation_id,
        "summary": (operation.endpoint.__doc__ or "").strip().splitlines()[0],
        "description": _LEVELS[operation.min_level],
        "x-level": operation.min_level.name.lower(),
        "parameters": [*_path_parameters(operation.path), *_query_parameters(operation.query_model)],
        "responses": {
            **{str(status): {"description": text} for status, text in operation.responses.items()},
            "default": {
                "description": "a problem",
                "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        },
    }
    if operation.body_media_types:
        described["requestBody"] = {
            "required": True,
            "content": {kind: _file_content(kind) for kind in operation.body_media_types},
        }
    if operation.body_model:
        schema = {"$ref": _REF.format(model=operation.body_model.__name__)}
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        if operation.accepts_form:
            described["requestBody"]["content"]["multipart/form-data"] = _job_form_content(schema)
    if operation.min_level is Level.OPEN:
        described["security"] = []
    elif operation.min_level > Level.OWNER or operation.endpoint is session.create_session:
        described["security"] = [{"token": []}]
    return described


def _body_schemas() -> dict[str, Any]:
    described: dict[str, Any] = {}
    for name, model in routes.body_models().items():
        schema = model.model_json_schema(ref_template=_REF)
        described |= schema.pop("$defs", {})
        described[name] = schema
    return described


def _file_content(media_type: str) -> dict[str, Any]:
    if media_type != "multipart/form-data":
        return {}
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    fields = {"owner": {"type": "string"}, "file": file}
    return {"schema": {"type": "object", "required": ["file"], "properties": fields}}


def _job_form_content(schema: dict[str, Any]) -> dict[str, Any]:
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    job = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
    form = {"type": "object", "required": ["job"], "properties": {"job": job}, "additionalProperties": file}
    return {"schema": form}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _query_parameters(model: type[BaseModel] | None) -> list[dict[str, Any]]:
    properties = model.model_json_schema()["properties"] if model else {}
    return [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in properties.items()]
