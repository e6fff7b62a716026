"""The OpenAPI document matches the API."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

from click.testing import CliRunner
from fastapi.routing import APIRoute, iter_route_contexts
from jsonschema import Draft202012Validator

from cli import main
from tests.support.operations import OPERATIONS
from web import openapi, routes
from web.api.job_schema import JobCreate
from web.api.projects import ProjectBody
from web.api.registrations import PredictionCreate
from web.api.scenes import SceneBody, SceneOrderBody
from web.api.tokens import OwnerTokenCreate, TokenCreate
from web.http.permissions import Level


def test_every_route_is_described() -> None:
    """Clients know only the paths in the document."""
    described = {
        (path, method.upper())
        for path, item in openapi.build_document()["paths"].items()
        for method in item
        if path.startswith("/v1/")
    }

    served = {
        (re.sub(r":\w+}", "}", route.path), method)
        for route in iter_route_contexts(routes.build_router().routes)
        if route.path.startswith("/v1/")
        for method in (route.methods or set()) - {"HEAD"}
    }

    assert described == served
    assert ("/v1/renders/{render_id}", "DELETE") in described


def test_routes_are_not_in_included_routers() -> None:
    """FastAPI searches included routers one by one, and builds the handler of a route in them at each request."""
    assert {type(route) for route in routes.build_router().routes} == {APIRoute}


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

    of_receiver = {"/webhooks/{provider}", "/healthz", "/readyz"}
    assert without == {"/v1/assets/renders/{render_id}/{name}", "/v1/assets/quarantine/{output_id}"} | of_receiver


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


def test_every_success_has_a_schema_without_free_objects() -> None:
    """A generated client has a type for everything that is returned, and an unknown field is an error."""
    document = openapi.build_document()
    schemas = document["components"]["schemas"]
    successes = [
        (f"{method} {path}", response)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        for status, response in operation["responses"].items()
        if status.startswith("2") and status != "204"
    ]

    free = {
        path
        for name, response in successes
        for media in response["content"].values()
        for path, schema in walk(media["schema"], name, schemas)
        if is_free(schema)
    }

    assert len(successes) > 30
    assert {path.rpartition(".")[2] for path in free} == {"document"}
    assert all(schemas[name]["additionalProperties"] is False for name in ("Job", "Render", "Project", "Problem"))


def walk(schema: Any, path: str, schemas: dict[str, Any], seen: set[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield a schema and those below it with their paths, each component once."""
    seen = set() if seen is None else seen
    name = schema.get("$ref", "").rpartition("/")[2]
    if name and name in seen:
        return
    schema = schemas[name] if name else schema
    yield path, schema
    below = [(f"{path}.{field}", inner) for field, inner in schema.get("properties", {}).items()]
    below += [(path, inner) for inner in schema.get("anyOf", ())]
    below += [
        (f"{path}[]", schema[key]) for key in ("items", "additionalProperties") if isinstance(schema.get(key), dict)
    ]
    for where, inner in below:
        yield from walk(inner, where, schemas, seen | {name})


def is_free(schema: dict[str, Any]) -> bool:
    return schema == {} or (
        schema.get("type") == "object"
        and not {"properties", "$ref"} & set(schema)
        and schema.get("additionalProperties") in (None, True, {})
    )


def test_examples_are_valid_requests() -> None:
    """A reader copies them."""
    document = openapi.build_document()
    models = [JobCreate, PredictionCreate, OwnerTokenCreate, TokenCreate, ProjectBody, SceneBody, SceneOrderBody]

    for model in models:
        (example,) = document["components"]["schemas"][model.__name__]["examples"]
        assert model.model_validate(example).model_dump(exclude_unset=True) == example


def test_notifications_headers_and_the_receiver_are_described() -> None:
    """A client generator sees everything that an application sends or receives."""
    document = openapi.build_document()
    headers = {
        parameter["name"]
        for item in document["paths"].values()
        for operation in item.values()
        for parameter in operation["parameters"]
        if parameter["in"] == "header"
    }

    assert list(document["webhooks"]) == ["job.succeeded", "job.partial", "job.failed", "job.cancelled"]
    assert headers == {"Idempotency-Key", "If-Match", "If-None-Match", "If-Range", "Last-Event-ID", "Range"}
    assert all(operation["tags"] for item in document["paths"].values() for operation in item.values())


def test_the_reference_shows_every_operation_and_schema_without_scripts() -> None:
    """The page is rendered from the document; its policy forbids scripts, and it contains none."""
    document = openapi.build_document()

    response = asyncio.run(openapi.get_reference())

    page = bytes(response.body).decode()
    ids = set(re.findall(r'<section id="(\w+)"', page))
    operations = {op["operationId"] for item in document["paths"].values() for op in item.values()}
    assert ids >= operations | set(document["components"]["schemas"])
    assert set(re.findall(r'href="#(\w+)"', page)) <= ids | {"schemas"}
    assert "<script" not in page
    assert response.headers["content-security-policy"].startswith("default-src 'none'; style-src 'self'; base-uri")


def test_the_command_prints_it() -> None:
    """For a build without a running API."""
    done = CliRunner().invoke(main.cli, ["openapi"])

    assert done.exit_code == 0
    assert json.loads(done.output) == json.loads(openapi.document_json())


def test_examples_are_as_their_schemas_say() -> None:
    """A client developer copies them."""
    document = openapi.build_document()
    schemas = document["components"]["schemas"]
    shown = {name: schema["examples"] for name, schema in schemas.items() if "examples" in schema}

    errors = [
        (name, error.message)
        for name, examples in shown.items()
        for example in examples
        for error in Draft202012Validator(
            {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        ).iter_errors(example)
    ]

    assert errors == []
    assert {"NewJob", "Job", "Render", "Project", "Upload", "OwnerToken", "Notification", "Problem"} <= set(shown)


def test_tags_and_headers_are_declared() -> None:
    """Each operation has one described tag; each response names its headers."""
    document = openapi.build_document()
    declared = {tag["name"] for tag in document["tags"]}
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    ours = [operation for operation in operations if "x-level" in operation and operation["tags"] != ["receiver"]]

    assert {tag for operation in operations for tag in operation["tags"]} == declared
    assert all("X-Request-Id" in response["headers"] for o in ours for response in o["responses"].values())
    assert "Location" in document["paths"]["/v1/jobs"]["post"]["responses"]["202"]["headers"]
    assert "ETag" in document["paths"]["/v1/projects/{project_id}"]["put"]["responses"]["200"]["headers"]
