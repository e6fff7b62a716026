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

    @property
    def body_model(self) -> bool:
        """Return True if a JSON body is required. The document takes half a second: not while tests are collected."""
        described = openapi.build_document()["paths"][f"/v1{self.path}"][self.method.lower()]
        return "application/json" in described.get("requestBody", {}).get("content", {})


def list_operations() -> list[Operation]:
    return [
        Operation(openapi.get_level(route.dependant), method, route.path_format.removeprefix("/v1"))
        for route in iter_route_contexts(routes.build_router().routes)
        if route.include_in_schema
        for method in route.methods
    ]


OPERATIONS: Final = list_operations()
