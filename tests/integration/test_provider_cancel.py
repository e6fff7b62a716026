"""Stopping a prediction at its provider, over HTTP: where it is asked, and what each answer amounts to."""

from collections.abc import Iterator
from typing import Any

import pytest

from moorage.errors import ProviderRefused, ProviderUnavailable
from providers import Provider
from tests.integration.provider_server import TOKENS, Server, answer, provider_at, running

CALLS = {
    "replicate": ("POST", "/v1/predictions/x1/cancel", None),
    "fal": ("PUT", "/fal-ai/flux/requests/x1/cancel", "fal-ai/flux/dev"),
    "openai": ("POST", "/v1/responses/x1/cancel", None),
}
ENDED = {
    "replicate": (422, b'{"detail": "it has ended"}'),
    "fal": (400, b'{"status": "ALREADY_COMPLETED"}'),
    "openai": (409, b'{"error": {"message": "it has ended"}}'),
}


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as one:
        yield one


@pytest.fixture(params=list(CALLS))
def name(request: Any) -> str:
    return str(request.param)


@pytest.fixture
def provider(server: Server, name: str) -> Provider:
    return provider_at(name, server.server_port)


@pytest.mark.parametrize("status", [200, 202])
def test_a_cancel_is_one_request_with_the_token(server, provider, name, status):
    """The end of the prediction is not read from the response: webhook and poll report it."""
    method, path, model = CALLS[name]
    server.answer = answer(status, b"whatever")

    provider.cancel("x1", model)

    (asked,) = server.asked
    assert provider.can_cancel
    assert (asked.method, asked.path, asked.body) == (method, path, b"")
    assert asked.headers["Authorization"].endswith(TOKENS[name])


def test_what_has_ended_is_no_error(server, provider, name):
    """A cancellation races with the end."""
    server.answer = answer(*ENDED[name])

    provider.cancel("x1", CALLS[name][2])

    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_unavailable_provider_is_retried(server, provider, name, status):
    """A prediction that is not cancelled costs money."""
    server.answer = answer(status, Retry_After="3")

    with pytest.raises(ProviderUnavailable, match=str(status)) as raised:
        provider.cancel("x1", CALLS[name][2])

    assert raised.value.retry_after == 3


@pytest.mark.parametrize("status", [301, 401, 403])
def test_a_refusal_to_stop_is_final(server, provider, name, status):
    """A wrong token stays wrong; a redirect is not followed."""
    server.answer = answer(status, Location=f"http://127.0.0.1:{server.server_port}/elsewhere")

    with pytest.raises(ProviderRefused, match=str(status)):
        provider.cancel("x1", CALLS[name][2])

    assert len(server.asked) == 1


@pytest.mark.parametrize("external_id", ["", ".", ".."])
def test_an_id_that_is_not_a_path_segment_is_not_requested(server, provider, name, external_id):
    """It would stop something else."""
    with pytest.raises(ProviderRefused):
        provider.cancel(external_id, CALLS[name][2])

    assert server.asked == []


def test_another_refusal_of_fal_is_distinguished_from_an_end(server):
    """Both are a 400."""
    server.answer = answer(400, b'{"detail": "bad request"}')

    with pytest.raises(ProviderRefused, match="400"):
        provider_at("fal", server.server_port).cancel("x1", "fal-ai/flux/dev")
