"""Providers of MOORAGE_PROVIDERS_FILE: what a declaration means, and how a wrong one is refused."""

import base64
import hmac
import json
import re
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import providers
from cli.commands import providers as command
from moorage import settings as settings_module
from moorage.errors import BadSignature, ConfigError, KeysStale, MalformedPayload, ProviderRefused, UnrelatedEvent
from moorage.provider_types import SubmitRequest, SubmitResult
from moorage.settings import Settings
from providers import Provider, json_fields
from providers.declared import DeclaredProvider
from tasks.predictions.reports import compute_expiry
from tests.support import declared

BASE = {"database_url": "postgresql://moorage@localhost/moorage", "broker_url": "redis://localhost"}
SECRET = "a secret, with a comma, of 32 bytes"
ACME = """
[acme]
output_hosts = ["files.acme.example"]
[acme.webhook]
signature = "hmac"
secrets = ["ACME_OLD", "ACME_SECRET"]
headers = ["X-Acme-Signature"]
prefix = "sha256="
[acme.fields]
id = "task.id"
status = "task.state"
outputs = "task.files[].url"
error = "task.reason"
expires_at = "task.until"
when = "type == 'task'"
[acme.statuses]
running = ["Busy"]
succeeded = ["Ready"]
failed = ["Error"]
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_SECRET", SECRET)
    monkeypatch.setenv("ACME_TOKEN", "a_token")


def load(tmp_path: Path, text: str, **given: Any) -> dict[str, Provider]:
    path = tmp_path / "providers.toml"
    path.write_text(text, encoding="utf-8")
    return dict(providers.load(Settings(_env_file=None, **BASE, **{"providers_file": path, **given})))


def body(**task: Any) -> bytes:
    return json.dumps({"type": "task", "task": {"id": "x1", "state": "Ready", **task}}).encode()


# --- what a declaration means -----------------------------------------------------------------------------------


def test_a_declared_provider_verifies_and_reads_what_it_declares(tmp_path):
    """Unknown fields are ignored; words are read in any case; a time may be in Unix seconds."""
    acme = load(tmp_path, ACME)["acme"]
    files = [{"url": "https://files.acme.example/a.png"}, {"url": "https://evil.example/b.png"}, {"size": 1}]
    raw = body(files=files, until=1_790_000_000, state="READY", new={"deep": [1]})
    signature = f"sha256={hmac.digest(SECRET.encode(), raw, 'sha256').hex()}".encode()

    verified = acme.verify([(b"x-acme-signature", signature)], raw, 0)
    report = acme.parse_report(raw)

    assert verified.webhook_id is None
    assert (report.external_id, report.status, report.raw_status) == ("x1", "succeeded", "READY")
    assert [(file.path, bool(file.problem)) for file in report.outputs] == [("outputs[0]", False), ("outputs[1]", True)]
    assert report.expires_at is not None
    assert (acme.can_poll, acme.can_submit, acme.can_cancel, acme.is_enabled) == (False, False, False, True)
    with pytest.raises(BadSignature):
        acme.verify([(b"x-acme-signature", signature)], raw + b" ", 0)


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b'{"type": "task", "task": {"ID": "x1", "state": "Ready"}}', MalformedPayload),
        (b'{"type": "task", "task": {"id": "x1"}}', MalformedPayload),
        (b'{"type": "task", "task": {"id": "x1", "State": "Ready"}}', MalformedPayload),
        (b'{"type": "task", "task": {"id": ["x1"], "state": "Ready"}}', MalformedPayload),
        (b'{"type": "task", "task": null}', MalformedPayload),
        (b'{"type": "billing"}', UnrelatedEvent),
        (b"[]", MalformedPayload),
        (b"\xff", MalformedPayload),
    ],
)
def test_what_does_not_fit_is_refused_cleanly(tmp_path, raw, error):
    """A field in another case, a missing one, another event."""
    with pytest.raises(error):
        load(tmp_path, ACME)["acme"].parse_report(raw)


def test_an_unknown_word_leaves_a_prediction_open(tmp_path):
    """The word is kept: the poll decides."""
    report = load(tmp_path, ACME)["acme"].parse_report(body(state="Almost"))

    assert (report.status, report.raw_status, report.outputs) == ("unknown", "Almost", ())


def test_a_status_may_be_a_number(tmp_path):
    """As kie.ai's successFlag: the words are those of JSON."""
    acme = load(tmp_path, ACME.replace('"Ready"', '"1"').replace('"Error"', '"2", "false"'))["acme"]

    reports = [acme.parse_report(body(state=state)) for state in (1, 2, 0, False)]

    expected = [("succeeded", "1"), ("failed", "2"), ("unknown", "0"), ("failed", "false")]
    assert [(report.status, report.raw_status) for report in reports] == expected
    for wrong in (1.5, None, ["1"]):
        with pytest.raises(MalformedPayload, match="status"):
            acme.parse_report(body(state=wrong))


def test_a_hint_whose_status_is_a_number_runs(tmp_path):
    """It causes no poll before the end."""
    acme = load(tmp_path, ACME.replace('"Busy"', '"0"').replace("prefix =", "is_hint = true\nprefix =") + POLL)["acme"]

    assert [acme.parse_report(body(state=state)).needs_fetch for state in (0, 1)] == [False, True]


@pytest.mark.parametrize(
    "until",
    [1_790_000_000, 1_790_000_000.0, "1790000000", "1790000000.0", 1_790_000_000_000, "1790000000000",
     "2026-09-21T14:13:20Z", "2026-09-21 14:13:20"],
)  # fmt: skip
def test_a_time_is_unix_seconds_or_milliseconds_or_iso_8601(tmp_path, until):
    """As a number, also a fraction, or as text."""
    report = load(tmp_path, ACME)["acme"].parse_report(body(until=until))

    assert report.expires_at == datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    "until", [True, 0, -1, 1e30, 10**20, float("nan"), float("inf"), "12", "1_790_000_000", "\u0661" * 10, {}]
)
def test_what_is_no_time_is_ignored(tmp_path, until):
    """The output life of the declaration remains."""
    assert load(tmp_path, ACME)["acme"].parse_report(body(until=until)).expires_at is None


def test_digits_are_no_date_of_iso_8601(tmp_path):
    """Python reads the first ones of these as 15 January 1701."""
    report = load(tmp_path, ACME)["acme"].parse_report(body(until="1701011500123"))

    assert report.expires_at == datetime(2023, 11, 26, 15, 11, 40, 123000, tzinfo=UTC)


class OnlySubmits(DeclaredProvider):
    """As the how-to says: with `submit` alone."""

    def submit(self, request: SubmitRequest) -> SubmitResult:
        return SubmitResult(request.model)


def test_the_models_of_a_declaration_are_offered_whatever_submits(tmp_path, monkeypatch):
    """Owners may only use those."""
    monkeypatch.setitem(providers._SUBMITTING, "acme", OnlySubmits)
    text = ACME.replace("output_hosts", 'submit = "acme"\nmodels = ["large"]\noutput_hosts') + POLL

    acme = load(tmp_path, text)["acme"]

    assert [model["name"] for model in acme.describe_models("image")] == ["large"]


def test_an_expression_that_does_not_fit_a_document_is_its_fault(tmp_path):
    """JMESPath functions raise for other types: a dead letter, not an error of moorage."""
    acme = load(tmp_path, ACME.replace("task.files[].url", "join('-', task.files)"))["acme"]

    with pytest.raises(MalformedPayload, match="outputs"):
        acme.parse_report(body(files=7))


def test_a_provider_without_its_variables_is_loaded_and_shut(tmp_path, monkeypatch):
    """As a built-in one: the message names the variables."""
    monkeypatch.delenv("ACME_SECRET")
    acme = load(tmp_path, ACME)["acme"]

    assert not acme.is_enabled
    with pytest.raises(BadSignature, match="set ACME_OLD or ACME_SECRET"):
        acme.verify([], b"{}", 0)


@pytest.mark.parametrize("webhook", ["hmac", "standard", "token", "digest"])
def test_no_secret_is_recorded(tmp_path, webhook):
    """Whatever the headers are called."""
    names = {"standard": ["a-id", "a-time", "user-agent"], "digest": ["a-id", "a-user", "a-time", "user-agent"]}
    headers = names.get(webhook, ["user-agent"])
    more = 'jwks = ["https://a.example/k"]\nusers = ["u"]' if webhook == "digest" else 'encoding = "text"'
    text = ACME.replace('"hmac"', f'"{webhook}"').replace('["X-Acme-Signature"]', json.dumps(headers) + "\n" + more)
    acme = load(tmp_path, text.replace('prefix = "sha256="', ""))["acme"]

    kept = acme.select_headers([(name.encode(), b"x") for name in (*headers, "webhook-id", "authorization")])

    assert sorted(kept) == sorted(headers[:-1])


def test_secrets_are_decoded_as_declared(tmp_path, monkeypatch):
    """Base64 for Standard Webhooks, text otherwise; a file may hold them."""
    key = b"k" * 32
    (tmp_path / "secret").write_text(key.hex())
    monkeypatch.delenv("ACME_SECRET")
    monkeypatch.setenv("ACME_SECRET_FILE", str(tmp_path / "secret"))
    raw = body()
    signature = f"sha256={hmac.digest(key, raw, 'sha256').hex()}".encode()
    coded = ACME.replace("prefix =", 'encoding = "hex"\nprefix =')

    load(tmp_path, coded)["acme"].verify([(b"x-acme-signature", signature)], raw, 0)
    (tmp_path / "secret").write_text("not hex")
    with pytest.raises(ConfigError, match="ACME_OLD or ACME_SECRET is not in the encoding hex") as raised:
        load(tmp_path, coded)
    assert raised.value.__cause__ is None


def test_the_longest_wait_between_polls_fits_the_life_of_the_files(tmp_path):
    """RunPod keeps a result for 30 minutes, BFL's URLs live for ten."""
    poll = '[acme.poll]\nurl = "https://api.acme.example/v1/{id}"\ntoken = "ACME_TOKEN"\n'
    acme = load(tmp_path, ACME.replace("[acme.webhook]", "output_life_seconds = 600\n[acme.webhook]") + poll)["acme"]

    assert acme.can_poll
    assert acme.first_poll_seconds() == 60
    assert {acme.next_poll_seconds(polls) for polls in range(50)} == {60}


def test_of_several_times_the_earliest_expires_and_what_is_no_time_is_ignored(tmp_path):
    """Each file may have its own; a body without files has none."""
    acme = load(tmp_path, ACME.replace('"task.until"', '"task.files[].until"'))["acme"]
    times = ["2026-11-29T19:00:00Z", "tomorrow", 1_790_000_000]

    report = acme.parse_report(body(files=[{"until": until} for until in times]))

    assert report.expires_at == json_fields.optional_unix_time(1_790_000_000)
    assert acme.parse_report(body()).expires_at is None


# --- compatible services ----------------------------------------------------------------------------------------

COMPATIBLE = """
[together]
api = "openai"
base_url = "https://api.together.example"
token = "ACME_TOKEN"
models = ["flux"]
output_hosts = ["files.together.example"]

[cog]
api = "replicate"
base_url = "https://cog.example"
token = "ACME_TOKEN"
[cog.webhook]
signature = "standard"
secrets = ["COG_SECRET"]

[queue]
api = "fal"
base_url = "https://queue.example"
token = "ACME_TOKEN"
[queue.webhook]
signature = "digest"
headers = ["x-fal-webhook-request-id", "x-fal-webhook-user-id", "x-fal-webhook-timestamp", "x-fal-webhook-signature"]
jwks = ["https://queue.example/jwks.json"]
users = ["me"]
"""


def test_a_compatible_service_is_a_url_a_key_and_a_name(tmp_path, monkeypatch):
    """The built-in provider keeps its own; limits, models and messages are of the new name."""
    monkeypatch.setenv("COG_SECRET", "whsec_" + base64.b64encode(b"s" * 32).decode())
    loaded = load(tmp_path, COMPATIBLE, in_flight="together=3", openai_api_key="sk-1")
    together, cog, queue = (loaded[name] for name in ("together", "cog", "queue"))

    assert [one.can_submit for one in (together, cog, queue, loaded["openai"])] == [True] * 4
    assert (together.max_in_flight, loaded["openai"].max_in_flight, cog.max_in_flight) == (3, 10, 1)
    assert (together.models, loaded["openai"].models) == (("flux",), ("gpt-image-1",))
    assert (together.is_synchronous, cog.can_list, cog.has_secret, together.has_secret) == (True, True, True, False)
    assert "together.output_hosts in line 7 of" in str(together.refusal_reason("https://evil.example/a"))
    assert together.refusal_reason("https://files.together.example/a") is None
    assert "OPENAI_OUTPUT_HOSTS" in str(loaded["openai"].refusal_reason("https://evil.example/a"))
    assert queue.verifier.key_set._urls == ("https://queue.example/jwks.json",)


def test_a_compatible_service_has_the_headers_and_the_times_of_its_declaration(tmp_path, monkeypatch):
    """And the built-in ones keep their own."""
    monkeypatch.setenv("COG_SECRET", "whsec_" + base64.b64encode(b"s" * 32).decode())
    names = ["X-Cog-Id", "X-Cog-Time", "X-Cog-Signature"]
    text = COMPATIBLE.replace("x-fal-webhook", "x-queue").replace(
        'secrets = ["COG_SECRET"]', f'secrets = ["COG_SECRET"]\nheaders = {json.dumps(names)}'
    )
    times = "output_life_seconds = 7200\nfirst_poll_seconds = 20\n"
    loaded = load(tmp_path, text.replace('token = "ACME_TOKEN"\n', f'token = "ACME_TOKEN"\n{times}'), fal_user_id="u")
    together, cog, queue = (loaded[name] for name in ("together", "cog", "queue"))

    for one in (together, cog, queue):
        assert (one.output_lifetime_seconds, one.first_poll_seconds()) == (7200, 20)
    raw, now = b'{"id": "x1", "status": "starting"}', 1_790_000_000
    digest = base64.b64encode(hmac.digest(b"s" * 32, b"m1.1790000000." + raw, "sha256"))
    values = [b"m1", b"1790000000", b"v1," + digest]
    assert (
        cog.verify([(n.lower().encode(), v) for n, v in zip(names, values, strict=True)], raw, now).webhook_id == "m1"
    )
    with pytest.raises(BadSignature, match="x-queue-request-id"):
        queue.check_headers([], now)
    for one, prefix in ((cog, "x-cog-"), (queue, "x-queue-"), (loaded["fal"], "x-fal-webhook-")):
        given = [
            (f"{prefix}{n}".encode(), b"1") for n in ("id", "request-id", "user-id", "time", "timestamp", "signature")
        ]
        kept = set(one.select_headers(given))
        assert kept == {
            f"{prefix}{n}" for n in (("id", "time") if one is cog else ("request-id", "user-id", "timestamp"))
        }
    assert (loaded["replicate"].output_lifetime_seconds, loaded["fal"].output_lifetime_seconds) == (3600, None)
    ended = {"id": "x1", "status": "succeeded", "completed_at": "2026-09-21T14:13:20Z", "output": None}
    report = cog.parse_report(json.dumps(ended).encode())
    at = datetime(2026, 9, 21, 14, 13, 25, tzinfo=UTC)
    assert compute_expiry(report, at, cog.output_lifetime_seconds) == datetime(2026, 9, 21, 16, 13, 20, tzinfo=UTC)


def test_the_examples_of_the_how_to_are_right(tmp_path, monkeypatch, project_root):
    """What a reader copies must be accepted."""
    for name in ("ACME_WEBHOOK_SECRET", "ACME_API_KEY", "TOGETHER_API_KEY"):
        monkeypatch.setenv(name, "a_secret_of_16_bytes")
    page = (project_root / "docs/how-to/add-a-provider.md").read_text(encoding="utf-8")
    blocks = [textwrap.dedent(block) for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL)]

    loaded = load(tmp_path, "\n".join(blocks))

    report = loaded["acme"].parse_report(
        b'{"type": "task.updated", "task": {"id": 7, "state": "Ready", "files": [{"url": "https://files.acme.example/a"}]}}'
    )
    assert (report.external_id, report.status, len(report.outputs)) == ("7", "succeeded", 1)
    assert (loaded["acme"].is_enabled, loaded["acme"].can_poll, loaded["together"].can_submit) == (True, True, True)


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Call `moorage providers` with the declarations of this file; no server is there."""
    (tmp_path / "providers.toml").write_text(ACME, encoding="utf-8")
    given = Settings(_env_file=None, **BASE, providers_file=tmp_path / "providers.toml")
    monkeypatch.setattr(settings_module, "get_settings", lambda: given)
    return lambda *args, **more: CliRunner().invoke(command.providers, args, **more)


def test_the_command_lists_what_is_configured(run):
    """A misspelt variable shows here."""
    listed = {row["name"]: row for row in json.loads(run("list", "--json").output)["providers"]}

    assert set(listed) == {"acme", "fal", "openai", "replicate", "standard"}
    assert listed["acme"] == {
        "name": "acme", "webhooks": "verified", "can": "", "verified by": "ACME_OLD or ACME_SECRET"
    }  # fmt: skip


def test_the_command_shows_what_a_payload_would_do(run):
    """With the reason why a file is not downloaded, or why nothing is."""
    files = [{"url": "https://files.acme.example/a.png"}, {"url": "https://evil.example/b.png"}]

    shown = run("test", "acme", "--body", "-", input=body(files=files)).output.splitlines()

    assert shown[:3] == [
        "id: x1", "status: succeeded (Ready)", "outputs[0]: downloaded https://files.acme.example/a.png"
    ]  # fmt: skip
    assert shown[3].startswith("outputs[1]: not downloaded https://evil.example/b.png host evil.example is not allowed")
    assert "ignored: type == 'task'" in run("test", "acme", "--body", "-", input=b'{"type": "x"}').output
    assert isinstance(run("test", "acme", "--body", "-", input=b"[]").exception, MalformedPayload)
    assert "write acme or fal" in str(run("test", "acne", "--body", "-", input=b"{}").exception)


def test_the_command_escapes_what_could_steer_a_terminal(run):
    """A recorded body is opened exactly because it is odd."""
    shown = run("test", "acme", "--body", "-", input=body(state="Error", reason="x\r\x07\u202e\ud800y")).output

    assert "\nerror: x\\r\\x07\\u202e\\ud800y\n" in shown


def test_the_command_verifies_the_signature_of_a_recorded_webhook(run, tmp_path):
    """As of the time when it was received; a wrong one is refused before the body is read."""
    declared_text = ACME.replace('prefix = "sha256="', 'prefix = "sig="\nalgorithm = "sha512"\nis_timed = true')
    (tmp_path / "providers.toml").write_text(declared_text, encoding="utf-8")
    raw = body()
    digits = hmac.digest(SECRET.encode(), b"1700000000." + raw, "sha512").hex()
    given = ["test", "acme", "--body", "-", "--header", f"X-Acme-Signature: t=1700000000,sig={digits}"]

    right = run(*given, "--at", "1700000100", input=raw)

    assert right.output.startswith("signature: verified\nid: x1\n")
    for args, document, reason in (
        (given, raw, "s old, more than 300 s"),
        ([*given, "--at", "1700000100"], raw + b" ", "no signature matches"),
        ([*given[:4], "--header", "X-Acme: 1"], raw, "x-acme-signature is missing"),
    ):
        wrong = run(*args, input=document)
        assert wrong.exit_code == 1
        assert reason in wrong.output
        assert "id:" not in wrong.output


def test_the_command_reads_the_answer_to_a_poll(run, tmp_path):
    """By the poll's own fields and without `when`: an unsigned webhook shows nothing of them."""
    own = POLL + '[acme.poll.fields]\nid = "id"\nstatus = "state"\noutputs = "files"\n'
    (tmp_path / "providers.toml").write_text(ACME + own, encoding="utf-8")
    answer = {"id": "x1", "state": "Ready", "files": ["https://files.acme.example/a.png"]}

    def show(name: str, **changed: Any) -> str:
        return run("test", name, "--poll", "--body", "-", input=json.dumps({**answer, **changed})).output

    assert "outputs[0]: downloaded" in show("acme")
    assert show("acme", id=None).startswith("status: succeeded (Ready)\noutputs[0]: downloaded")
    assert "next: poll, then end without files" in show("acme", files=[])
    assert "next: none, the prediction stays open" in show("acme", state="Odd")
    with pytest.raises(ConfigError, match="remove --poll"):
        run("test", "fal", "--poll", "--body", "-", input=b"{}", catch_exceptions=False)


# --- what is refused --------------------------------------------------------------------------------------------

POLL = '[acme.poll]\nurl = "https://api.acme.example/{id}"\ntoken = "ACME_TOKEN"\n'
WRONG = [
    ("[acme", "write TOML"),
    (ACME.replace("output_hosts", "output_hostz"), "line 3: acme.output_hostz: is not known; did you mean output_"),
    (ACME.replace('"hmac"', '"hmak"'), 'line 5: acme.webhook.signature: |; write "standard", "digest"'),
    (ACME.replace('"ACME_OLD"', '"whsec_AbC"'), "line 6: acme.webhook.secrets.0: is not the name of an environment"),
    (ACME.replace("X-Acme-Signature", "X Acme"), "line 7: acme.webhook.headers.0: is not the name of a heade"),
    (ACME.replace('headers = ["X-Acme-Signature"]\n', ""), 'signature "hmac" is in 1 header(s): write'),
    (ACME.replace('prefix =', 'users = ["u"]\nprefix ='), 'line 4: acme.webhook: signature "hmac" does not use users'),
    (ACME.replace("prefix =", "tolerance_seconds = 60\nprefix ="), "no tolerance: write is_timed = true"),
    (ACME.replace("[acme.webhook]", "output_life_seconds = 0\n[acme.webhook]"), "write a whole number of seconds"),
    (ACME.replace('"task.reason"', '"lenght(task)"'), "line 13: acme.fields.error: is not a JMESPath|lenght"),
    (ACME.replace('"task.id"', '"task.[id"'), "line 10: acme.fields.id: is not a JMESPath expression"),
    (ACME.replace('id = "task.id"\n', ""), 'line 9: acme.fields.id: is missing; write a JMESPath'),
    (ACME.replace('"Busy"', '"ready"'), "line 2: acme: statuses has ready more than once"),
    (ACME.replace("succeeded =", "success ="), "line 18: acme.statuses.success|write lists of status words"),
    (ACME.replace('["ACME_OLD", "ACME_SECRET"]', "[]"), "line 4: acme.webhook: there is nothing to verify with: write"),
    (ACME.replace("[acme", "[replicate"), "line 2: replicate is a name that is taken"),
    (ACME.replace("[acme", "[ACME"), "line 2: ACME is a name that is taken, or invalid"),
    (ACME.replace("files.acme.example", "https://a/"), "acme.output_hosts in line 3 of MOORAGE_PROVIDERS_FILE"),
    (ACME.replace('prefix = "sha256="', "is_hint = true"), "nothing confirms what it reports: write a table poll"),
    (ACME + POLL.replace("{id}", ""), "line 20: acme.poll: url has no {id}"),
    (ACME + POLL.replace("{id}", "{id}/{key}"), "line 20: acme.poll: url has no {id} in its path, or other braces"),
    (ACME + POLL.replace("api.acme.example/{id}", "{id}/"), "url has no {id}"),
    (ACME + POLL.replace("https:", "http:"), "acme.poll.url in line 21 of MOORAGE_PROVIDERS_FILE is not encrypted"),
    (ACME + POLL.replace("ACME_TOKEN", "sk-AbC"), "line 22: acme.poll.token: is not the name"),
    (ACME + "[acme.poll]\n", 'acme.poll.url: is missing; write the status URL with {id}'),
    (ACME.replace("[acme.webhook]", 'api = "openai"\n[acme.webhook]'), "has its own fields, statuses and polls"),
    ('[acme]\napi = "openai"\n', "write base_url and token"),
    ("[acme]\n", "write the tables fields"),
    (ACME.replace("output_hosts", 'submit = "bfl"\noutput_hosts'), "nothing confirms what it reports: write a table"),
    (ACME.replace("output_hosts", 'models = ["m"]\noutput_hosts'), "belong to a compatible service"),
    (ACME.replace("output_hosts", 'submit = "x"\noutput_hosts') + POLL, "acme.submit in line 3|not known: write bfl"),
    (COMPATIBLE.replace('users = ["me"]\n', ""), "one set of keys signs for all users: write"),
    (COMPATIBLE.partition("[queue.webhook]")[0], 'write a table webhook with signature = "digest"'),
    (COMPATIBLE.replace('secrets = ["COG_SECRET"]', 'secrets = ["COG_SECRET"]\nencoding = "text"\nis_hint = true'),
     'line 9: cog: webhook of api = "replicate" does not use encoding, is_hint: write no more than headers, secrets'),
    (COMPATIBLE.replace('secrets = ["COG_SECRET"]', 'jwks = ["https://cog.example/jwks"]'),
     'webhook of api = "replicate" does not use jwks: write no more than headers, secrets'),
    (COMPATIBLE.replace("users =", 'secrets = ["COG_SECRET"]\nusers ='), 'webhook of api = "fal" does not use secrets'),
    ("acme = 1\n", "line 1: acme: is not a table"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), WRONG, ids=[says[:40] for _, says in WRONG])
def test_a_wrong_declaration_refuses_the_start_with_line_and_remedy(tmp_path, text, says):
    """And never shows a value that may be a secret."""
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, text)

    assert all(part in str(raised.value) for part in says.split("|"))
    assert "AbC" not in str(raised.value)


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    """Not one restart for each mistake."""
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, ACME.replace('"hmac"', '"x"').replace("error =", "eror =") + ACME.replace("[acme", "[fal"))

    assert str(raised.value).count("\n") == 2


def test_a_file_that_is_not_there_is_refused(tmp_path):
    """Else its providers would silently be gone."""
    with pytest.raises(ConfigError, match=r"MOORAGE_PROVIDERS_FILE=.*cannot be read"):
        load(tmp_path, ACME, providers_file=tmp_path / "none.toml")


# --- the catalog: payloads built from the providers' documentation, not seen live -------------------------------

PAYLOADS = json.loads((Path(__file__).parents[1] / "corpus/catalog.json").read_text(encoding="utf-8"))
EACH_PAYLOAD = [(name, payload) for name, payloads in PAYLOADS.items() for payload in payloads]
each_payload = pytest.mark.parametrize(
    ("name", "payload"), EACH_PAYLOAD, ids=[f"{name}-{payload['about']}" for name, payload in EACH_PAYLOAD]
)
COMPUTED = {"ideogram": ["generation_id", "data"]}  # its status is computed from the files


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Provider]:
    """Return an entry of the catalog with its tokens and secrets set."""

    def load_entry(name: str) -> Provider:
        path = tmp_path / "entry.toml"
        path.write_text(declared.read_entry(declared.CATALOG[0].with_name(f"{name}.toml")), encoding="utf-8")
        for kind, variables in declared.find_variables(path).items():
            for variable in variables:
                monkeypatch.setenv(variable, "a_token" if kind == "tokens" else "whsec_" + "bW9v" * 8)
        return load(tmp_path, path.read_text(encoding="utf-8"))[name]

    return load_entry


def as_polled(entry: Provider, document: dict[str, Any]) -> Any:
    """Return what a document is read as where it is believed: a hint is not."""
    assert isinstance(entry, DeclaredProvider)
    return entry._parse(json.dumps(document).encode(), entry._poll_fields)


def test_every_entry_of_the_catalog_has_a_payload_of_success_and_failure():
    """One outside this suite is untested."""
    ends = {name: {payload["expect"]["status"] for payload in payloads} for name, payloads in PAYLOADS.items()}

    assert set(ends) == {path.stem for path in declared.CATALOG}
    assert all(statuses >= {"succeeded", "failed"} for statuses in ends.values())


@each_payload
def test_an_entry_of_the_catalog_reads_the_documented_payloads(catalog, name, payload):
    """Quoted field by field; unknown fields change nothing."""
    entry, document, expect = catalog(name), payload["body"], payload["expect"]

    for one in (document, {**document, "unknown": {"url": declared.FILE, "deep": [{"id": "x"}]}}):
        report = as_polled(entry, one)
        assert (report.external_id, report.status, report.raw_status, report.error) == (
            expect["external_id"], expect["status"], expect["raw_status"], expect["error"],
        )  # fmt: skip
        assert [[file.path, file.url] for file in report.outputs] == expect["outputs"]
        assert not any(file.problem for file in report.outputs)
        assert report.completed_at == json_fields.optional_datetime(expect.get("completed_at"))


@each_payload
def test_a_field_that_is_missing_or_in_another_case_is_refused(catalog, name, payload):
    """Id and status: without them nothing is known. A dead letter shows it, and is replayed after a correction."""
    entry, document = catalog(name), payload["body"]
    found = {"gemini": ["type", "data"], "luma": ["id", "state"], **COMPUTED}.get(name, ["id", "status"])

    for field in found:
        for spelt in (None, field.upper(), field.title()):
            damaged = {spelt if key == field else key: value for key, value in document.items()}
            with pytest.raises((MalformedPayload, UnrelatedEvent)):
                as_polled(entry, {key: value for key, value in damaged.items() if key is not None})


@each_payload
def test_an_entry_of_the_catalog_believes_no_unsigned_body(catalog, name, payload):
    """What is signed is verified, what is not is only a reason to poll."""
    entry, document = catalog(name), payload["body"]

    if entry.has_secret:
        with pytest.raises((BadSignature, KeysStale)):
            entry.verify([], json.dumps(document).encode(), 0)
    elif entry.is_enabled:
        report = entry.parse_report(json.dumps(document).encode())
        assert (report.status, report.outputs, report.error) == ("unknown", (), None)
        assert report.needs_fetch is (payload["expect"]["status"] not in ("queued", "running"))
        assert entry.can_poll
    assert entry.can_poll or entry.has_secret


def test_bfl_is_polled_within_a_minute_and_expires_ten_minutes_after_its_end(catalog):
    """Its webhooks are retried for 36 s: most of the life of a URL must be left for the first poll."""
    bfl = catalog("bfl")
    report = as_polled(bfl, PAYLOADS["bfl"][0]["body"])

    assert 36 < bfl.first_poll_seconds() < 60
    assert max(bfl.next_poll_seconds(polls) for polls in range(50)) <= 60
    received_at = report.completed_at + timedelta(seconds=36)
    expires_at = compute_expiry(report, received_at, bfl.output_lifetime_seconds)
    assert expires_at == report.completed_at + timedelta(minutes=10)


def test_gemini_ignores_what_is_about_something_else(catalog):
    """A project may subscribe to more events."""
    with pytest.raises(UnrelatedEvent, match="starts_with"):
        catalog("gemini").parse_report(b'{"type": "file.deleted", "data": {"id": "x"}}')


def test_a_poll_that_needs_the_model_says_so(catalog):
    """RunPod's URLs have the endpoint; a registration without it was accepted, and never polled."""
    assert (catalog("runpod").needs_model, catalog("bfl").needs_model) == (True, False)
    with pytest.raises(ProviderRefused, match="register it with one"):
        catalog("runpod").poll("t1")
