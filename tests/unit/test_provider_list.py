"""What a provider made since a time: Replicate's pages followed on its own host alone, bounded, and read strictly."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

import providers
from moorage.errors import ProviderRefused, ProviderUnavailable
from moorage.settings import Settings
from providers import Provider, replicate_list

SINCE = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
TOKEN = "r8_secret_token"


class Server(ThreadingHTTPServer):
    """Serves a prepared page for each path, and records the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: list[bytes | int] = []
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def page(self, *ids: str, following: str | None = None, **more: Any) -> None:
        results = [{"id": one, "status": "succeeded", **more} for one in ids]
        self.pages.append(json.dumps({"previous": None, "next": following, "results": results}).encode())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        answer = self.server.pages.pop(0) if self.server.pages else 404
        status, body = (answer, b"{}") if isinstance(answer, int) else (200, answer)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def provider(server: Server) -> Provider:
    return loaded(server)["replicate"]


def loaded(server: Server, **given: Any) -> Any:
    settings = {
        "database_url": "postgresql://moorage@localhost/moorage",
        "broker_url": "redis://localhost",
        "replicate_api_token": TOKEN,
        "replicate_api_url": server.url,
        "egress_allow": f"127.0.0.1:{server.server_port}",
        **given,
    }
    return providers.load(Settings(_env_file=None, **settings))


def ids(provider: Provider, since: datetime = SINCE) -> list[list[str]]:
    return [[listed.external_id for listed in page] for page in provider.list_predictions(since)]


def test_pages_are_followed_to_the_end(server, provider):
    """The hundredth prediction is not the last one after a bad night."""
    following = f"{server.url}/v1/predictions?cursor=2"
    server.page("a", "b", following=following)
    server.page("c")

    found = ids(provider, SINCE.astimezone(timezone(timedelta(hours=2))))

    assert found == [["a", "b"], ["c"]]
    assert parse_qs(urlsplit(server.asked[0]).query) == {"created_after": ["2026-11-21T03:00:00+00:00"]}
    assert server.asked[1] == "/v1/predictions?cursor=2"


def test_a_page_is_requested_only_after_the_one_before_was_used(server, provider):
    """Memory holds one page, however long the list is."""
    server.page("a", following=f"{server.url}/v1/predictions?cursor=2")
    server.page("b")

    pages = provider.list_predictions(SINCE)
    next(pages)

    assert len(server.asked) == 1


def test_the_fields_of_a_listed_prediction_are_read(server, provider):
    """The webhook identifies its submitter, the model becomes the registration's."""
    server.page("a", webhook="https://us.example/webhooks/replicate", model="m/n", output=["x"] * 3)
    server.pages[0] = server.pages[0].replace(b'"succeeded"', b'"processing"')

    ((listed,),) = provider.list_predictions(SINCE)

    assert (listed.external_id, listed.raw_status) == ("a", "processing")
    assert (listed.webhook, listed.model) == ("https://us.example/webhooks/replicate", "m/n")


def test_a_list_that_goes_on_elsewhere_is_not_followed(server, provider):
    """The token would go along."""
    elsewhere = [
        "http://127.0.0.1:9/v1/predictions?cursor=2",
        f"{server.url}/v1/files?cursor=2",
        f"{server.url}@evil.example/v1/predictions?cursor=2",
        f"{server.url}\\@evil.example/v1/predictions",
        "//evil.example/v1/predictions",
        "https://api.replicate.com.evil.example/v1/predictions",
        "file:///etc/passwd",
    ]
    for following in elsewhere:
        server.page("a", following=following)

        with pytest.raises(ProviderRefused, match="another address"):
            ids(provider)

    assert len(server.asked) == len(elsewhere)


def test_a_circular_list_ends(server, provider):
    """A broken cursor must not poll for ever."""
    for _ in range(3):
        server.page("a", following=f"{server.url}/v1/predictions?cursor=1")

    with pytest.raises(ProviderUnavailable, match="circular"):
        ids(provider)

    assert len(server.asked) == 2


def test_a_list_without_an_end_is_given_up(server, provider, monkeypatch):
    """New cursors for ever are no list either."""
    monkeypatch.setattr(replicate_list, "_MAX_PAGES", 3)
    for number in range(5):
        server.page("a", following=f"{server.url}/v1/predictions?cursor={number}")

    with pytest.raises(ProviderRefused, match="more than 3 pages"):
        ids(provider)

    assert len(server.asked) == 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>maintenance</html>",
        b"[]",
        b"{}",
        b'{"results": {}, "next": null}',
        b'{"results": [], "next": 7}',
        b'{"results": [7], "next": null}',
        b'{"results": [{"status": "succeeded"}], "next": null}',
        b'{"results": [{"id": "a"}], "next": null}',
    ],
)
def test_a_200_that_is_no_list_is_no_answer(server, provider, body):
    """A proxy's page read as an empty list would say that nothing is missing."""
    server.pages = [body]

    with pytest.raises(ProviderUnavailable, match="no list"):
        ids(provider)


@pytest.mark.parametrize(
    ("status", "error"), [(401, ProviderRefused), (302, ProviderRefused), (429, ProviderUnavailable)]
)
def test_a_failure_in_the_middle_is_raised(server, provider, status, error):
    """Half a list must not be taken for all of it."""
    server.page("a", following=f"{server.url}/v1/predictions?cursor=2")
    server.pages.append(status)

    pages = provider.list_predictions(SINCE)

    assert [listed.external_id for listed in next(pages)] == ["a"]
    with pytest.raises(error, match=str(status)):
        next(pages)


def test_a_page_may_be_longer_than_a_webhook(server):
    """It holds a hundred predictions, some with their files inside."""
    provider = loaded(server, webhook_max_bytes=1000)["replicate"]
    server.page(*(f"id{number}" for number in range(100)))

    assert [len(page) for page in ids(provider)] == [100]


def test_a_page_is_bounded_all_the_same(server, provider, monkeypatch):
    """Our memory is not the provider's to fill."""
    monkeypatch.setattr(replicate_list, "_LIST_BYTES", 1000)
    server.page(*(f"id{number}" for number in range(100)))

    with pytest.raises(ProviderRefused, match="more than 1000 bytes"):
        ids(provider)


def test_a_provider_without_a_list_refuses(server):
    """No list differs from an empty list."""
    with pytest.raises(ProviderRefused, match="has no list"):
        ids(loaded(server)["standard"])
    with pytest.raises(ProviderRefused, match="set REPLICATE_API_TOKEN"):
        ids(loaded(server, replicate_api_token=None)["replicate"])
