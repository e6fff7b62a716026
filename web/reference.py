"""GET /docs: the OpenAPI document as a page, rendered on the server, without scripts."""

import functools
from typing import Final

from starlette.responses import Response

from web import openapi
from web.page import views

PATH: Final = "/docs"
_POLICY: Final = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


async def get_reference() -> Response:
    """Return the reference."""
    headers = {**views.SECURITY_HEADERS, "Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
    return Response(_render(), media_type="text/html", headers=headers)


@functools.cache
def _render() -> str:
    document = openapi.build_document()
    operations = [
        {"method": method.upper(), "path": path, "tag": operation["tags"][0], **operation}
        for path, item in [*document["paths"].items(), *document["webhooks"].items()]
        for method, operation in item.items()
    ]
    return views.render_template("reference.html", document=document, operations=operations)
