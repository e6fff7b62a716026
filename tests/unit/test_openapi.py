"""The OpenAPI document matches the API."""

import json
import re

from click.testing import CliRunner
from fastapi.routing import iter_route_contexts

from cli import main
from tests.support.operations import OPERATIONS
from web import openapi, routes
from web.api.predictions import PredictionCreate
from web.http.permissions import Level


def test_every_route_is_described() -> None:
    """Clients know only the paths in the document."""
    described = {
        (path, method.upper()) for path, item in openapi.build_document()["paths"].items() for method in item if method
    }

    served = {
        (re.sub(r":\w+}", "}", route.path), method)
        for route in iter_route_contexts(routes.build_router().routes)
        if route.path.startswith("/v1/")
        for method in (route.methods or set()) - {"HEAD"}
    }

    assert described == served
    assert ("/v1/renders/{render_id}", "DELETE") in described


def test_queries_and_bodies_are_described() -> None:
    """Names and bounds come from the models that validate requests."""
    document = openapi.build_document()

    listed = document["paths"]["/v1/renders"]["get"]["parameters"]
    assert {parameter["name"] for parameter in listed} == {
        "owner", "kind", "state", "style", "project_id", "before", "limit",
    }  # fmt: skip
    (limit,) = [parameter["schema"] for parameter in listed if parameter["name"] == "limit"]
    assert (limit["minimum"], limit["maximum"], limit["default"]) == (1, 100, 50)
    assert set(document["components"]["schemas"]["PredictionCreate"]["properties"]) == set(
        PredictionCreate.model_fields
    )
    assert "requestBody" in document["paths"]["/v1/predictions"]["post"]


def test_references_resolve_and_operation_ids_are_unique() -> None:
    """Client generators stop at the first error."""
    document = openapi.build_document()
    operations = [operation for item in document["paths"].values() for operation in item.values()]

    names = [operation["operationId"] for operation in operations]
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))

    assert len(set(names)) == len(names)
    assert references <= set(document["components"]["schemas"])
    assert all(operation["summary"] for operation in operations)
    for path, item in document["paths"].items():
        for operation in item.values():
            in_path = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
            assert in_path == set(re.findall(r"\{(\w+)\}", path))


def test_only_assets_require_no_token() -> None:
    """A client that follows the document must not be rejected."""
    paths = openapi.build_document()["paths"]

    without = {path for path, item in paths.items() for operation in item.values() if operation.get("security") == []}

    assert without == {"/v1/assets/renders/{render_id}/{name}", "/v1/assets/quarantine/{output_id}"}


def test_every_operation_names_its_level_and_credentials() -> None:
    """A client sends the credentials that the document names."""
    document = openapi.build_document()
    schemes = document["components"]["securitySchemes"]

    for operation in OPERATIONS:
        described = document["paths"][f"/v1{operation.path}"][operation.method.lower()]
        credentials = {name for option in described.get("security", document["security"]) for name in option}
        assert described["x-level"] == operation.min_level.name.lower()
        assert described["x-level"] in described["description"].lower()
        is_open, is_owner = operation.min_level is Level.OPEN, operation.min_level is Level.OWNER
        accepts_session = is_owner and described["operationId"] != "createSession"
        assert credentials == (set() if is_open else {"token", "session"} if accepts_session else {"token"})
    assert (schemes["token"]["scheme"], schemes["session"]["in"]) == ("bearer", "cookie")
    assert schemes["session"]["name"] == "__Host-moorage"


def test_the_command_prints_it() -> None:
    """For a build without a running API."""
    done = CliRunner().invoke(main.cli, ["openapi"])

    assert done.exit_code == 0
    assert json.loads(done.output) == json.loads(openapi.document_json())
