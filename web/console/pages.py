"""All pages of the console."""

from starlette.routing import BaseRoute

from web.console import dead_letters, operations, overview, records, session
from web.console.session import render_problem
from web.page import views

__all__ = ("build_routes", "is_console_path", "render_problem")


def build_routes() -> list[BaseRoute]:
    modules = (session, overview, dead_letters, operations, records)
    return [route for module in modules for route in module.router.routes]


def is_console_path(path: str) -> bool:
    return path == views.CONSOLE or path.startswith(f"{views.CONSOLE}/")
