"""Routers of the API: HEAD beside GET, ids of operations from the names of endpoints, the response of problems."""

from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter
from fastapi.params import Depends

PROBLEM_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    "default": {
        "description": "a problem",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}


class Router(APIRouter):
    """Collects routes. Included routers would be searched one by one, and build a route's handler at each request."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._operations: list[tuple[str, Callable[..., Any], dict[str, Any]]] = []

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Collect a route; for GET also one for HEAD: the server omits the body."""
        first, *rest = endpoint.__name__.split("_")
        options["operation_id"] = first + "".join(word.title() for word in rest)
        options["summary"] = (endpoint.__doc__ or "").partition("\n")[0]
        self._operations.append((path, endpoint, options))
        if options["methods"] == ["GET"]:
            self._operations.append((path, endpoint, {**options, "methods": ["HEAD"], "include_in_schema": False}))

    def add_routes(self, router: APIRouter, prefix: str, dependencies: list[Depends], *, in_schema: bool) -> None:
        """Add the routes to another router, below a prefix and after more dependencies."""
        for path, endpoint, options in self._operations:
            added = {
                "tags": options["tags"] or self.tags,
                "dependencies": [*dependencies, *self.dependencies, *(options["dependencies"] or ())],
                "include_in_schema": in_schema and options["include_in_schema"],
            }
            router.add_api_route(prefix + self.prefix + path, endpoint, **{**options, **added})
