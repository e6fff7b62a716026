"""The cache of models, and inputs validated against schemas."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from moorage.errors import ProviderUnavailable
from providers.base import Provider
from web.api import job_inputs
from web.services import model_cache
from web.services.model_cache import ModelCache

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": ["prompt", "image"],
    "properties": {
        "prompt": {"type": "string", "pattern": "(a+)+$", "maxLength": 40},
        "image": {"type": "string"},
        "size": {"enum": ["small", "large"]},
        "steps": {"type": "array", "items": {"type": "integer", "minimum": 1}},
    },
}


class FakeProvider:
    """A provider whose schema is returned by a function."""

    name = "fake"

    def __init__(self, respond: Callable[[], Mapping[str, Any]]) -> None:
        self.respond, self.requests = respond, 0

    def get_input_schema(self, _model: str) -> Mapping[str, Any]:
        self.requests += 1
        return self.respond()


def fail() -> Mapping[str, Any]:
    raise ProviderUnavailable("unavailable")


def test_a_cached_schema_is_not_fetched_again() -> None:
    """A schema is fetched once in ten minutes, for any number of job requests."""
    provider, cache = FakeProvider(lambda: SCHEMA), ModelCache()

    async def twice() -> list[Any]:
        first = await cache.get_schema(cast(Provider, provider), "m/n")
        return [first, await cache.get_schema(cast(Provider, provider), "m/n")]

    assert asyncio.run(twice()) == [SCHEMA, SCHEMA]
    assert provider.requests == 1
    cache.close()


def test_a_stale_schema_is_used_while_the_provider_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """An input can still be validated; only schemas that were never fetched are missing."""
    monkeypatch.setattr(model_cache, "TTL_SECONDS", 0)
    provider, cache = FakeProvider(lambda: SCHEMA), ModelCache()

    async def go() -> tuple[Any, Any]:
        before = await cache.get_schema(cast(Provider, provider), "m/n")
        provider.respond = fail
        with pytest.raises(ProviderUnavailable):
            await cache.get_schema(cast(Provider, provider), "m/other")
        return before, await cache.get_schema(cast(Provider, provider), "m/n")

    assert asyncio.run(go()) == (SCHEMA, SCHEMA)
    assert provider.requests == 3
    cache.close()


def test_requests_share_one_fetch_of_a_hanging_provider_and_its_late_response_is_cached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twenty job requests for one model must not use up the threads."""
    release = threading.Event()
    monkeypatch.setattr(model_cache, "FETCH_TIMEOUT_SECONDS", 0.05)
    provider, cache = FakeProvider(lambda: SCHEMA if release.wait(60) else {}), ModelCache()

    async def ask() -> Any:
        return await cache.get_schema(cast(Provider, provider), "m/n")

    async def go() -> Any:
        results = await asyncio.gather(*(ask() for _ in range(20)), return_exceptions=True)
        assert {type(result) for result in results} == {ProviderUnavailable}
        release.set()
        async with asyncio.timeout(60):
            while True:
                try:
                    return await ask()
                except ProviderUnavailable:
                    continue

    assert asyncio.run(go()) == SCHEMA
    assert provider.requests == 1
    cache.close()


def test_each_invalid_field_is_named_and_no_value_is_repeated() -> None:
    """The response may be logged by the client; the input may be private."""
    given = {"prompt": "secret" * 10, "size": "huge-secret", "steps": [1, 0, "secret"]}

    errors = job_inputs.find_schema_errors(given, SCHEMA, "input")

    assert {error["field"]: error["message"] for error in errors} == {
        "input.image": "is required by the model",
        "input.prompt": "has more than 40 characters",
        "input.size": 'is not one of ["small", "large"]',
        "input.steps[1]": "is less than 1",
        "input.steps[2]": "is not an integer",
    }
    assert "secret" not in str(errors)


def test_a_providers_pattern_is_not_evaluated() -> None:
    """This one backtracks exponentially."""
    assert job_inputs.find_schema_errors({"prompt": "a" * 39 + "!", "image": "x"}, SCHEMA, "input") == []


def test_references_to_other_documents_are_not_followed() -> None:
    """A schema must not cause requests to URLs of its choice."""
    with pytest.raises(job_inputs.UnusableSchema, match="Unresolvable"):
        job_inputs.find_schema_errors({"a": 1}, {"properties": {"a": {"$ref": "http://127.0.0.1:9/x.json"}}}, "input")


def test_an_invalid_schema_is_unusable() -> None:
    """It rejects nothing: the input is then unchecked."""
    with pytest.raises(job_inputs.UnusableSchema):
        job_inputs.find_schema_errors({"a": 1}, {"type": "nonsense"}, "input")


def test_a_number_that_cannot_be_compared_leaves_the_input_unchecked() -> None:
    """The quotient of 401 digits and a fraction is no float: the response was a 500."""
    with pytest.raises(job_inputs.UnusableSchema, match="OverflowError"):
        job_inputs.find_schema_errors({"scale": 10**400}, {"properties": {"scale": {"multipleOf": 0.5}}}, "input")


@pytest.mark.parametrize("kind", [{"type": "string"}, {"anyOf": [{"type": "string"}, {"type": "null"}]}])
def test_a_list_with_an_error_in_every_item_is_validated_quickly(kind):
    """All errors were collected and sorted for the 20 that are reported: the event loop was blocked for seconds."""
    schema = {"properties": {"images": {"type": "array", "items": kind}}}

    started = time.thread_time()
    errors = job_inputs.find_schema_errors({"images": [1] * 100_000}, schema, "input")

    assert len(errors) == 20
    assert errors[0]["field"] == "input.images[0]"
    assert time.thread_time() - started < 1  # of this thread alone, whatever else is busy
