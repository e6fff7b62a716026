"""What is particular to OpenAI: thin events, events of no interest, secrets, and pictures inside a response."""

import base64
import json
from typing import Any

import pytest

import providers
from moorage.errors import ConfigError, MalformedPayload, ProviderRefused, UnrelatedEvent
from moorage.settings import Settings
from providers.openai import OpenAI

BASE = {"database_url": "postgresql://moorage@localhost/moorage", "broker_url": "redis://localhost"}
RESPONSE = {"id": "resp_1"}
PICTURE = base64.b64encode(b"a picture").decode()


def openai(**given: object) -> OpenAI:
    provider = providers.load(Settings(_env_file=None, **BASE, **given))["openai"]
    assert isinstance(provider, OpenAI)
    return provider


def event(kind: object, data: object = RESPONSE) -> bytes:
    return json.dumps({"id": "evt_1", "object": "event", "type": kind, "data": data}).encode()


def response(**fields: Any) -> Any:
    """Return what a response of the API is read as."""
    body = {"id": "resp_1", "object": "response", "status": "completed", **fields}
    return openai()._parse_response(json.dumps(body).encode())


@pytest.mark.parametrize(
    "kind",
    ["batch.completed", "fine_tuning.job.succeeded", "eval.run.canceled", "realtime.call.incoming", "video.completed",
     "response", "response.", "response.created", "responses.completed", "x"],
)  # fmt: skip
def test_an_unrelated_event_is_named_in_the_message(kind):
    """A project sends webhooks of every kind: unrelated ones must not become dead letters."""
    with pytest.raises(UnrelatedEvent, match=kind):
        openai().parse_report(event(kind))


@pytest.mark.parametrize(
    "body", [event(None), event(7), event("response.completed", None), event("response.completed", {})]
)
def test_an_event_without_type_or_id_is_unreadable(body):
    """It may be ours: a person looks at it."""
    with pytest.raises(MalformedPayload, match=r"type|data"):
        openai().parse_report(body)


def test_with_a_key_an_event_has_no_error():
    """The hint stands in the dead letter of those who have none."""
    assert openai().parse_report(event("response.completed")).error == "set OPENAI_API_KEY"
    assert openai(openai_api_key="sk-x").parse_report(event("response.completed")).error is None


def test_the_pictures_of_a_response_are_its_image_generation_calls_in_order():
    """Beside them stand messages, reasoning, and calls that failed."""
    report = response(
        output=[
            {"type": "reasoning", "summary": []},
            {"type": "image_generation_call", "status": "completed", "result": PICTURE},
            {"type": "image_generation_call", "status": "failed", "result": None},
            {"type": "message", "content": [{"type": "output_text", "text": "https://app.example/not-a-file"}]},
            {"type": "image_generation_call", "status": "completed", "result": PICTURE.rstrip("=")},
        ]
    )

    assert [(found.path, found.data) for found in report.outputs] == [
        ("output[1].result", b"a picture"),
        ("output[4].result", b"a picture"),
    ]
    assert not report.needs_fetch


@pytest.mark.parametrize("result", ["%%%", "é", "a", "data:image/png;base64,%%%"])
def test_a_result_that_is_not_base64_is_a_file_with_a_problem(result):
    """One that vanished would publish the others as if they were all."""
    (found,) = response(output=[{"type": "image_generation_call", "result": result}]).outputs

    assert found.data is None
    assert "base64" in (found.problem or "")


@pytest.mark.parametrize(
    "output", [None, {}, "x", [], [None, 1, "x"], [{"type": "image_generation_call", "result": 7}]]
)
def test_a_response_without_pictures_names_none(output):
    """It becomes NO_OUTPUT: OpenAI returned text only."""
    assert response(output=output).outputs == ()


def test_a_url_in_place_of_the_bytes_must_be_on_an_allowed_host():
    """What answers like OpenAI may name an address."""
    (found,) = response(output=[{"type": "image_generation_call", "result": "https://evil.example/a.png"}]).outputs

    assert "OPENAI_OUTPUT_HOSTS" in (found.problem or "")


@pytest.mark.parametrize(
    ("fields", "status", "error"),
    [
        ({"status": "queued"}, "queued", None),
        ({"status": "in_progress"}, "running", None),
        ({"status": "resting"}, "unknown", None),
        ({"status": "cancelled"}, "cancelled", None),
        ({"status": "failed", "error": {"code": "moderation_blocked", "message": "rejected"}}, "failed", "rejected"),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, "failed", "content_filter"),
    ],
)
def test_only_what_is_finished_is_named(fields, status, error):
    """The images of a call that was cut off are not the requested ones."""
    call = {"type": "image_generation_call", "status": "generating", "result": PICTURE}
    report = response(output=[call], **fields)

    assert (report.status, report.error, report.outputs) == (status, error, ())


@pytest.mark.parametrize("cut", ["in_progress", "generating", "failed", None])
def test_the_finished_pictures_of_an_incomplete_response_are_kept(cut):
    """They are paid for. The others are not, and a response without any has failed."""
    calls = [
        {"type": "image_generation_call", "status": cut, "result": PICTURE},
        {"type": "image_generation_call", "status": "completed", "result": PICTURE},
        {"type": "message", "status": "completed", "content": []},
        "x",
    ]
    details = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}

    report, none = response(output=calls, **details), response(output=calls[:1] + calls[2:], **details)

    assert (report.status, report.raw_status, report.error) == ("succeeded", "incomplete", "max_output_tokens")
    assert [(file.path, file.data) for file in report.outputs] == [("output[1].result", b"a picture")]
    assert (none.status, none.outputs) == ("failed", ())
    assert response(output=None, **details).status == "failed"


def test_pictures_of_other_tools_are_outputs():
    """Code draws, too. What it prints, and the code itself, are none; the token goes to the API's files alone."""
    provider = openai(openai_api_key="sk-x", openai_output_hosts="api.openai.com,files.example")
    own, other = "https://api.openai.com/v1/containers/c_1/files/f_1/content", "https://files.example/plot.png"
    tool = {
        "type": "code_interpreter_call", "status": "completed", "code": f"save('{other}')",
        "outputs": [
            {"type": "logs", "logs": "https://files.example/log.png"},
            {"type": "image", "url": own}, {"type": "image", "url": other}, {"type": "image"}, 7,
        ],
    }  # fmt: skip
    body = {"id": "resp_1", "status": "completed", "output": [{"type": "message", "outputs": "x"}, tool]}

    report = provider._parse_response(json.dumps(body).encode())

    assert [(file.path, file.url, file.problem) for file in report.outputs] == [
        ("output[1].outputs[1].url", own, None), ("output[1].outputs[2].url", other, None)
    ]  # fmt: skip
    assert {file.problem for file in report.mentions} == {"is no image of a tool", "is part of a text"}
    assert provider.download_headers(own) == {"Authorization": "Bearer sk-x"}
    for url in (other, own.replace("https:", "http:"), own + "/../x", "https://api.openai.com/v1/models", own + "x"):
        assert provider.download_headers(url) == {}


@pytest.mark.parametrize("secret", ["a-plain-secret-of-some-length", "bWFueSBieXRlcyBvZiBiYXNlNjQ="])
def test_a_secret_without_its_prefix_is_refused_at_the_start_and_not_shown(secret):
    """OpenAI's library takes it as text, others as base64: a wrong guess refuses every webhook."""
    with pytest.raises(ConfigError, match="whsec_") as raised:
        openai(openai_webhook_secret=secret)

    assert secret not in str(raised.value)


@pytest.mark.parametrize("url", ["http://api.openai.example", "https://user:word@api.openai.com"])
def test_the_key_travels_safely_or_not_at_all(url):
    """Who can read it can spend."""
    with pytest.raises(ConfigError, match="OPENAI_API_URL"):
        openai(openai_api_key="sk-x", openai_api_url=url)


def test_a_wrong_key_is_refused_at_the_start_and_not_shown():
    """A line break from a copied file would split the header."""
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as raised:
        openai(openai_api_key="sk-hunter2\nx")

    assert "hunter2" not in str(raised.value)


def test_without_a_key_openai_cannot_be_polled():
    """The message names the missing setting."""
    assert not openai().can_poll
    with pytest.raises(ProviderRefused, match="OPENAI_API_KEY"):
        openai().poll("resp_1")
