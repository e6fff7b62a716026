"""Routers of the API: HEAD beside GET, ids of operations from the names of endpoints, the response of problems."""

from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter

PROBLEM_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    "default": {
        "description": "a problem",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}


class Router(APIRouter):
    def __init__(self, **options: Any) -> None:
        super().__init__(responses=PROBLEM_RESPONSES, redirect_slashes=False, **options)

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Add a route; for GET also one for HEAD: the server omits the body."""
        first, *rest = endpoint.__name__.split("_")
        options["operation_id"] = first + "".join(word.title() for word in rest)
        options["summary"] = (endpoint.__doc__ or "").partition("\n")[0]
        super().add_api_route(path, endpoint, **options)
        if options["methods"] == ["GET"]:
            super().add_api_route(path, endpoint, **{**options, "methods": ["HEAD"], "include_in_schema": False})
