"""Parts of the API that need no server."""

import asyncio
import difflib
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

import pytest
from pydantic import BaseModel
from starlette.requests import Request

from db.connection import current_time
from moorage.asgi import LazyApp
from moorage.errors import ConfigError
from moorage.model import Registration
from moorage.provider_types import ListedPrediction
from moorage.settings import Settings
from web import asgi
from web.api import job_create, operator_actions
from web.api.job_schema import JobCreate
from web.api.operator_actions import RecoveryCreate
from web.api.projects import ProjectBody
from web.api.registrations import KeepCreate, PredictionCreate
from web.api.responses import ModelSchema, SceneUrls
from web.api.scenes import SceneBody, SceneOrderBody
from web.http import json_body, query, validation
from web.http.problems import Problem
from web.services import model_cache, worker_access
from web.services.model_cache import MAX_PENDING, ModelCache

T = TypeVar("T")


def parse_registration(body: dict[str, Any], *, partial: Literal["keep", "discard"]) -> Registration:
    settings: Any = SimpleNamespace(partial=partial, notify_urls=())
    return Registration(**validation.parse_body(body, PredictionCreate).build_fields(settings))


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 50))


def fake_start(name: str, events: list[str], error: Exception | None = None) -> Any:
    """Return the `start` of an application that records its start and its end; it can fail to start."""

    @asynccontextmanager
    async def start() -> AsyncIterator[Any]:
        if error is not None:
            raise error
        events.append(f"{name} starts")
        try:
            yield None
        finally:
            events.append(f"{name} stops")

    return start


def run_lifespan(monkeypatch: Any, api: Any, sent: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Run the whole lifespan of the combined application and return what it sends to the server."""
    messages = iter(["lifespan.startup", "lifespan.shutdown"])
    sent = [] if sent is None else sent

    async def receive() -> dict[str, Any]:
        return {"type": next(messages)}

    async def send(message: Any) -> None:
        sent.append(message)

    monkeypatch.setattr(asgi.api, "start_api", api)
    run(LazyApp(asgi.start_receiver_and_api)({"type": "lifespan"}, receive, send))
    return sent


def use_settings(monkeypatch: Any, **changes: Any) -> None:
    loaded = Settings(
        _env_file=None,
        database_url="postgresql://h/d",
        broker_url="redis://h",
        replicate_webhook_secret="whsec_" + "a" * 32,
    ).model_copy(update=changes)
    monkeypatch.setattr(asgi.settings_module, "get_settings", lambda: loaded)
    monkeypatch.setattr(asgi.logs, "configure_logging", lambda *_args: None)  # of the whole process


@pytest.fixture
def events(monkeypatch: Any) -> list[str]:
    """The recorded events of the lifespan; the receiver is a fake."""
    use_settings(monkeypatch)
    events: list[str] = []
    monkeypatch.setattr(asgi._receiver, "start_receiver", fake_start("receiver", events))
    return events


def test_the_receiver_says_once_what_it_serves(events: list[str], monkeypatch: Any, caplog: Any) -> None:
    """It printed nothing: where it listens, and that no provider is enabled, had to be guessed."""
    monkeypatch.setenv("GRANIAN_HOST", "127.0.0.1")
    monkeypatch.setenv("GRANIAN_PORT", "8000")
    caplog.set_level("INFO")

    run_lifespan(monkeypatch, fake_start("api", events))

    (record,) = [record for record in caplog.records if record.message == "receiver.listening"]
    api = "closed: set MOORAGE_API_TOKEN"
    assert record.fields == {"host": "127.0.0.1", "port": "8000", "providers": "replicate", "api": api}


def test_both_applications_start_and_stop(events: list[str], monkeypatch: Any) -> None:
    """The relays start with the first event and publish the rest with the second."""
    sent = run_lifespan(monkeypatch, fake_start("api", events))

    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert events == ["receiver starts", "api starts", "api stops", "receiver stops"]


def test_if_one_fails_to_start_the_other_is_stopped(monkeypatch: Any) -> None:
    """The server must receive the reason, and no thread may remain."""
    before = set(threading.enumerate())
    use_settings(monkeypatch, metrics_address="127.0.0.1:0")  # any free port

    sent = run_lifespan(monkeypatch, fake_start("api", [], ConfigError("the api lacks a setting")))

    assert sent == [{"type": "lifespan.startup.failed", "message": "the api lacks a setting"}]
    assert set(threading.enumerate()) <= before


def test_an_unexpected_error_during_startup_fails_it(events: list[str], monkeypatch: Any) -> None:
    """The server would serve without what was to be started: 500 for every request."""
    sent: list[dict[str, Any]] = []

    with pytest.raises(LookupError, match="broken"):
        run_lifespan(monkeypatch, fake_start("api", events, LookupError("broken")), sent)

    assert sent == [{"type": "lifespan.startup.failed", "message": "broken"}]
    assert events == ["receiver starts", "receiver stops"]


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/", "/v1/jobs/7", "/api/v1/predictions", "/v1/webhooks/replicate", "/", "/page/x", "/docs"]
)
def test_paths_of_the_api(path: str) -> None:
    """Neither the page nor the API's prefix is routed to the receiver, which requires no token."""
    assert asgi.is_api_path(path)


@pytest.mark.parametrize(
    "path",
    ["/page", "/v1x", "/healthz", "/webhooks/v1", "/api/webhooks/replicate", "/api/v1/webhooks/replicate", "//v1/jobs"],
)
def test_all_other_paths_belong_to_the_receiver(path: str) -> None:
    """A webhook under any of its prefixes has no token and must not be authenticated."""
    assert not asgi.is_api_path(path)


def test_an_omitted_policy_defaults_to_the_setting() -> None:
    """`policy` overrides MOORAGE_PARTIAL for one job, and only if given."""
    minimal = {"provider": "replicate", "external_id": "a", "owner": "ada"}

    assert parse_registration(minimal, partial="discard").partial == "discard"
    assert parse_registration({**minimal, "policy": None}, partial="discard").partial == "discard"
    assert parse_registration({**minimal, "policy": "keep"}, partial="discard").partial == "keep"
    assert parse_registration(minimal, partial="keep").deadline_seconds is None


@pytest.mark.parametrize("scene", [2**53 + 1, -(2**63) + 1, 0.5, "2", 0])
def test_a_scene_keeps_its_type_and_value(scene: str | int | float) -> None:
    """An integer converted to a float would name another scene."""
    body = {"provider": "replicate", "external_id": "a", "owner": "ada", "project_id": "p", "scene": scene}

    read = parse_registration(body, partial="keep").scene

    assert read == scene
    assert type(read) is type(scene)


def test_the_number_of_reported_errors_is_limited() -> None:
    """The response to a megabyte of invalid fields is short."""
    with pytest.raises(Problem) as refused:
        parse_registration({f"field_{n}": n for n in range(1000)}, partial="keep")

    assert refused.value.errors is not None
    assert len(refused.value.errors) == validation.MAX_ERRORS


def sending(*messages: dict[str, Any]) -> Request:
    """Return a request whose body arrives in these messages and then stalls."""
    arriving = iter(messages)

    async def receive() -> Any:
        message = next(arriving, None)
        return message if message else await asyncio.sleep(60)

    return Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)


@pytest.mark.parametrize(("last", "status"), [(None, 408), ({"type": "http.disconnect"}, 400)], ids=["slow", "cut"])
def test_an_incomplete_body_is_rejected(
    monkeypatch: pytest.MonkeyPatch, last: dict[str, Any] | None, status: int
) -> None:
    """A sender that stops in the middle must not hold resources for long."""
    monkeypatch.setattr(json_body, "READ_SECONDS", 50.0 if last else 0.05)
    half = {"type": "http.request", "body": b'{"owner": ', "more_body": True}

    with pytest.raises(Problem) as refused:
        run(json_body.read_object(sending(half, *([last] if last else []))))

    assert refused.value.status == status


def test_a_body_in_chunks_is_reassembled() -> None:
    """A character may be split between two chunks."""
    body = '{"prompt": "🏠"}'.encode()
    pieces = [
        {"type": "http.request", "body": body[n : n + 1], "more_body": n + 1 < len(body)} for n in range(len(body))
    ]

    assert run(json_body.read_object(sending(*pieces))) == {"prompt": "🏠"}


@pytest.mark.parametrize(("size", "is_apart"), [(1000, False), (2**17, True)])
def test_a_large_body_is_parsed_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, size: int, is_apart: bool
) -> None:
    """A megabyte takes tenths of a second, in which no webhook was received."""
    threads: list[threading.Thread] = []
    parse = json_body.parse_object

    def record(body: bytes) -> dict[str, Any]:
        threads.append(threading.current_thread())
        return parse(body)

    monkeypatch.setattr(json_body, "parse_object", record)
    body = b'{"document":{"text":"' + b"x" * size + b'"}}'

    read = run(json_body.read_object(sending({"type": "http.request", "body": body})))
    parsed = run(json_body.JsonBody(ProjectBody)(body))

    assert read == {"document": parsed.document}
    assert [thread is not threading.main_thread() for thread in threads] == [is_apart] * 2


@pytest.mark.parametrize(("values", "is_apart"), [(10, False), (9000, True)])
def test_large_inputs_are_validated_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, values: int, is_apart: bool
) -> None:
    """Eighty thousand values took half a second, in which no webhook was received."""
    threads: list[threading.Thread] = []

    def refuse(_body: dict[str, Any], _model: type[BaseModel]) -> None:
        threads.append(threading.current_thread())
        raise Problem(422, "refused")

    monkeypatch.setattr(validation, "parse_body", refuse)
    body = {"input": {"images": [1] * values}}
    nobody: Any = None

    with pytest.raises(Problem, match="refused"):
        run(job_create._create_job(nobody, nobody, None, job_create.JobBody(body, body)))
    assert [thread is not threading.main_thread() for thread in threads] == [is_apart]


@pytest.mark.parametrize(
    "read",
    [
        lambda names: parse_registration(names, partial="keep"),
        lambda names: validation.parse_body({"owner": "ann", "chain": [names]}, JobCreate),
        lambda names: validation.parse_body(names, ProjectBody),
        lambda names: validation.parse_body(names, query.JobQuery),
        lambda names: validation.parse_body({f"\0{name}": "" for name in names}, JobCreate),
    ],
)
def test_suggestions_are_computed_for_reported_names_only(
    read: Callable[[dict[str, str]], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A similar name was searched for each of 100,000: no webhook was processed for seconds."""
    searched = []
    monkeypatch.setattr(difflib, "get_close_matches", lambda word, *_args, **_more: searched.append(word))

    with pytest.raises(Problem) as refused:
        read({f"k{n}": "0" for n in range(1000)})

    assert len(refused.value.errors or ()) == validation.MAX_ERRORS
    assert 0 < len(searched) <= 2 * validation.MAX_ERRORS


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ({f"k{n}": 0 for n in range(100_000)}, JobCreate),
        ({"chain": [{f"k{n}": 0 for n in range(300)}] * 8}, JobCreate),
        ({"metadata": {f"k{n}": 0 for n in range(100_000)}}, PredictionCreate),
        ({"urls": [0] * 100_000}, KeepCreate),
    ],
)
def test_a_body_of_too_many_values_is_refused_before_each_becomes_an_error(
    body: dict[str, Any], model: type[BaseModel]
) -> None:
    """A megabyte of unknown names took seconds, in which no webhook was received."""
    with pytest.raises(Problem, match="holds more than 2000 values") as refused:
        validation.parse_body(body, model)

    assert len(refused.value.errors or ()) == 1


def test_documents_inputs_and_scenes_are_as_large_as_before() -> None:
    """They are not validated value by value."""
    many = {f"k{n}": [0, 1] for n in range(3000)}
    entry = {"provider": "replicate", "model": "m/n", "input": many}

    validation.parse_body({"document": {**many, "scenes": [{}] * 1000}}, ProjectBody)
    validation.parse_body(many, SceneBody)
    validation.parse_body({"owner": "ada", "chain": [entry] * 8}, JobCreate)
    validation.parse_body({"order": [f"s{n}" for n in range(1000)]}, SceneOrderBody)


def test_a_schema_with_lone_surrogates_is_returned() -> None:
    """A provider's text may hold them, as JSON escapes; a response, which is UTF-8, cannot."""
    schema = {"\ud800": ["\udfff", {"x": "caf\u00e9"}], "default": 10**30}

    shown = ModelSchema(provider="p", model="m", schema=schema).model_dump_json()

    assert shown.encode().count(b"?") == 2
    assert "caf\u00e9" in shown
    assert str(10**30) in shown


@pytest.mark.parametrize(("value", "shown"), [(True, None), ([1], None), ({}, None), ("", ""), (7, 7), (1.5, 1.5)])
def test_the_id_of_a_scene_is_shown_if_it_is_a_name(value: Any, shown: Any) -> None:
    """A boolean became a number, which is another scene's name."""
    assert SceneUrls(id=value, index=1, imageUrls=[]).id == shown


def test_pending_fetches_of_the_model_cache_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """One owner's guesses at model names delayed the requests of all others."""
    held = threading.Event()
    monkeypatch.setattr(model_cache, "FETCH_TIMEOUT_SECONDS", 0.3)

    class Slow:
        name = "slow"

        def get_input_schema(self, _model: str) -> None:
            held.wait(10)

    async def ask() -> list[BaseException | None]:
        cache = ModelCache()
        provider: Any = Slow()
        fetches = (cache.get_schema(provider, f"a/{n}") for n in range(MAX_PENDING + 5))
        results = await asyncio.gather(*fetches, return_exceptions=True)
        held.set()
        cache.close()
        return [result for result in results if isinstance(result, BaseException)]

    messages = [str(error) for error in run(ask())]

    assert len(messages) == MAX_PENDING + 5
    assert sum("too many requests" in message for message in messages) == 5


def test_a_malformed_reference_is_reported_under_its_field_whatever_the_field_is_called() -> None:
    """The path was cut from the message at the first colon, which a model's field name may contain."""
    body = {"owner": "ada", "chain": [{"provider": "replicate", "model": "m/n"}], "input": {"a: b": {"upload": 7}}}

    with pytest.raises(Problem) as refused:
        validation.parse_body(body, JobCreate)

    (error,) = refused.value.errors or ()
    assert error["field"] == "input.a: b"
    assert "the id of an upload" in error["message"]


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_recovery_reads_the_list_of_a_provider_once_for_20_s(monkeypatch: pytest.MonkeyPatch, dry_run: bool) -> None:
    """The list of a month takes minutes, in which a thread reads for a browser that was closed. It was read twice."""
    now = datetime.now(UTC)
    seconds = 0.0

    def list_predictions(_since: datetime) -> Iterator[list[ListedPrediction]]:
        nonlocal seconds
        for number in range(100):
            seconds += 5
            yield [ListedPrediction(str(number), "succeeded")]

    monkeypatch.setattr(time, "monotonic", lambda: seconds)
    provider = SimpleNamespace(name="replicate", list_predictions=list_predictions)
    database = SimpleNamespace(run=lambda work: now if work is current_time else [])
    deps: Any = SimpleNamespace(
        database=database, providers={"replicate": provider}, settings=SimpleNamespace(public_url="https://m.example")
    )

    body = RecoveryCreate(provider="replicate", seconds=720 * 3600, dry_run=dry_run)

    view = operator_actions._recover(deps, "replicate", "an operator", body)

    assert sum(view.found.values()) == 5
    assert seconds == 25
    assert not view.is_complete


@dataclass
class FakeDeps:
    database: Any


def test_what_asks_a_provider_leaves_the_threads_of_the_loop_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """They check inputs and fetch public keys: without one, job requests and webhooks got 503."""
    end = threading.Event()
    monkeypatch.setattr(worker_access, "_connect", lambda _settings: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(worker_access, "_get_deps", lambda: FakeDeps(None))

    async def read_and_check() -> int:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        settings: Any = None
        reads = [asyncio.ensure_future(worker_access.run_with_deps(settings, lambda _: end.wait(50))) for _ in "abc"]
        await asyncio.sleep(0)  # each read has its thread, or waits for one
        try:
            return await asyncio.wait_for(asyncio.to_thread(int, "1"), 5)
        finally:
            end.set()
            await asyncio.gather(*reads)

    assert run(read_and_check()) == 1
