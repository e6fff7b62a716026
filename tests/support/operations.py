"""The operations of the API, read from its routes."""

from dataclasses import dataclass
from typing import Final

from fastapi.routing import iter_route_contexts

from web import openapi, routes
from web.http.permissions import Level


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path, relative to the prefix /v1."""

    min_level: Level
    method: str
    path: str
    body_model: bool  # a JSON body is required


def list_operations() -> list[Operation]:
    return [
        Operation(
            openapi.get_level(route.dependant),
            method,
            route.path_format.removeprefix("/v1"),
            "application/json" in openapi.build_document()["paths"][route.path_format][method.lower()]
            .get("requestBody", {}).get("content", {}),
        )
        for route in iter_route_contexts(routes.build_router().routes)
        if route.include_in_schema
        for method in route.methods
    ]  # fmt: skip


OPERATIONS: Final = list_operations()
