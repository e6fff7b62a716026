"""No answer to an owner's browser contains a secret of the settings, or a name of our machines, whatever has failed."""

import base64
import contextlib
import http.client
import json
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, get_args
from urllib.parse import unquote
from uuid import UUID, uuid4

import pytest

from db import leases
from db.connection import Connection, connect
from db.notifications import Notification
from embedded.stack import Stack
from moorage import errors
from moorage.errors import MoorageError
from moorage.model import Lease, Step
from moorage.provider_types import OutputFile
from moorage.retry_policy import DeadLetterDecision
from moorage.settings import Settings, env_names_by_field
from moorage.transitions import EventKind
from tasks import notifications
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import kept_world
from tests.integration import web_process as wp
from tests.integration.test_web_reads import end, hear
from web.http import visibility
from worker import failures

NODE: Final = f"worker-{secrets.token_hex(6)}"
PUBLIC: Final = {"public_url", "asset_base_url", "s3_public_endpoint_url"}  # they are in URLs of files


def draw(setting: str) -> str:
    """Return a random value of a secret or URL."""
    if setting.endswith(("_url", "_urls")):
        host, path, key, value = (secrets.token_hex(6) for _ in range(4))
        return f"https://h{host}.example:8443/p{path}/hooks%2F{key}?k{key}=v{value}&e={path}%20x"
    if setting.endswith("_secret") and setting != "owner_token_secret":
        return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    return secrets.token_hex(20)


def list_secret_fields() -> list[str]:
    kinds = {name: str(field.annotation) for name, field in Settings.model_fields.items()}
    urls = [name for name in kinds if name.endswith(("_url", "_urls")) and name not in PUBLIC]
    return urls + [name for name, kind in kinds.items() if "Secret" in kind and name not in urls]


KEPT: Final = {"database_url", "broker_url"}  # of the real servers
DRAWN: Final = {"aws_access_key_id": draw("aws_access_key_id")} | {
    name: draw(name) for name in list_secret_fields() if name not in {*KEPT, "aws_session_token", "api_token"}
}


@pytest.fixture(scope="module")
def front(url: str) -> Iterator[wp.Front]:
    given = {env_names_by_field()[name][0]: value for name, value in DRAWN.items()}
    with wp.running(url, **{**given, "MOORAGE_API_TOKEN": wp.TOKEN, "ASSET_BASE_URL": wp.BASE}) as process:
        yield process


@pytest.fixture(scope="module")
def deps(stack: Stack, url: str) -> Iterator[Deps]:
    made = cli.deps(stack, url)
    yield made
    made.database.close()


@pytest.fixture(scope="module")
def hidden(url: str) -> set[str]:
    """Return all that no owner may read: each value, and each part of a URL of 8 characters or more."""
    texts = {*DRAWN.values(), wp.TOKEN, url, NODE, *(text.removeprefix("whsec_") for text in DRAWN.values())}
    for name, value in DRAWN.items():
        if name.endswith(("_url", "_urls")):
            parts = re.split("[/?&=#@:]+", value)
            texts |= {*parts, *map(unquote, parts)}
    return {text for text in texts if len(text) >= 8}


TARGETS: Final = [
    value.partition(":8443")[2] for value in DRAWN.values() if ":8443" in value
]  # as libraries quote them
EVERYTHING: Final = " | ".join([*DRAWN.values(), wp.TOKEN, *TARGETS, "connection to 10.11.12.13"])


def claim(conn: Connection, step: Step, row_id: UUID) -> Lease:
    lease = leases.claim(conn, step, row_id, leased_by=f"{NODE}/1", lease_seconds=30, max_crashes=50)
    assert lease is not None
    return lease


def fail_output(deps: Deps, mine: Connection, made: wp.Answer, *failures_of: MoorageError) -> None:
    (row,) = mine.execute("SELECT id FROM outputs WHERE job_id = %s", [made.fields["job_id"]]).fetchall()
    for error in failures_of:
        mine.execute("UPDATE outputs SET run_at = moment() WHERE id = %s AND state = 'waiting'", [row["id"]])
        with contextlib.suppress(AssertionError):  # it has ended
            failures.record_failure(deps, claim(mine, "keep", row["id"]), "keep", error, kept_world.Calm())


def list_errors() -> list[MoorageError]:
    """Return an error of each effect, which says all that is secret."""
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MoorageError)]
    by_effect = {(kind.category, kind.event_kind, issubclass(kind, errors.Transient)): kind for kind in classes}
    return [kind(EVERYTHING) for kind in by_effect.values()]


@pytest.fixture(scope="module")
def jobs(front: wp.Front, deps: Deps, url: str) -> list[str]:
    """Create a job of eve for each kind of failure of an output, of a prediction, of a lease, and a partial one."""
    made: list[wp.Answer] = []
    with contextlib.closing(connect(url)) as mine:

        def register(name: str) -> wp.Answer:
            answer = front.register(
                external_id=f"{name}_{len(made)}", owner="eve", project_id=f"film_{len(made) % 3}"
            )  # fmt: skip
            assert answer.status == 201, answer.fields
            made.append(answer)
            return answer

        for error in list_errors():
            job = register("output")
            hear(mine, job, OutputFile("output[0]", "https://replicate.delivery/0.png"))
            fail_output(deps, mine, job, error)
        for category in get_args(errors.Category):
            decision = DeadLetterDecision(category, "Error", EVERYTHING, retryable=True)
            for partial in (0, 1) if category in ("PROVIDER_FAILED", "INTERNAL") else (0,):
                job = register("dead")
                hear(mine, job, *(OutputFile(f"output[{n}]", "https://replicate.delivery/0.png") for n in range(2)))
                end(mine, job, 0, None if partial else decision)
                end(mine, job, 1, decision)
            prediction_id = UUID(register("lost").fields["prediction_id"])
            mine.execute("UPDATE predictions SET run_at = moment() WHERE id = %s", [prediction_id])
            lease = claim(mine, "poll", prediction_id)
            with mine.transaction():
                failures.dead_letter_row(mine, deps, lease, "poll", decision, {"error": EVERYTHING})
        for kind in (kind for kinds in get_args(EventKind) for kind in get_args(kinds)):
            job_id = made[-1].fields["job_id"]
            mine.execute(
                "INSERT INTO events (subject, subject_id, job_id, from_state, to_state, kind, reason, actor)"
                " VALUES ('output', %(id)s, %(id)s, 'waiting', 'waiting', %(kind)s, %(text)s, %(text)s)",
                {"id": job_id, "kind": kind, "text": f"{NODE}: {EVERYTHING}"},
            )
        for subject in ("delivery", "notification", "dead_letter", "job"):  # the last one ends `read_stream`
            job_id = made[-1].fields["job_id"]
            mine.execute(
                "INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)"
                " VALUES (%(subject)s, %(id)s, %(id)s, 'new', 'dead', %(text)s, %(text)s)",
                {"id": job_id, "subject": subject, "text": f"{NODE}: {EVERYTHING}"},
            )
    return [answer.fields["job_id"] for answer in made]


def read_stream(front: wp.Front, headers: dict[str, str]) -> str:
    """Return what a stream sends from the first event on, up to the last."""
    conn = http.client.HTTPConnection("127.0.0.1", front.port, timeout=60)
    with contextlib.closing(conn):
        conn.request("GET", "/v1/events", headers={**headers, "last-event-id": "0"})
        lines: list[str] = []
        with conn.getresponse() as reply:
            while '"from_state": "new"' not in "".join(lines[-1:]):
                lines.append(reply.readline().decode())
    return "".join(lines)


def test_no_answer_to_an_owner_contains_a_secret(front: wp.Front, jobs: list[str], hidden: set[str]) -> None:
    """The address of a notification stood in events with its secret, and names of workers in the history."""
    asked = json.dumps({"owner": "eve", "scopes": ["jobs", "upload", "delete"]}).encode()
    token = front.ask("POST", "/v1/owner-tokens", asked, {**wp.BEARER, "content-type": "application/json"})
    headers = {"authorization": f"Bearer {token.fields['token']}"}
    paths = ["/", "/?state=failed", "/?state=partial", "/v1/jobs?limit=100", "/v1/renders?limit=100", "/v1/models"]
    paths += [f"/v1/projects/film_{n}" for n in range(3)] + ["/v1/session", "/v1/uploads/x", "/nowhere"]
    for job_id in jobs:
        paths += [f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/events", f"/page/jobs/{job_id}", f"/v1/renders/{job_id}"]

    answers = {path: front.call("GET", path, None, headers) for path in paths}
    texts = {path: answer[2].decode() + json.dumps(answer[1]) for path, answer in answers.items()}
    texts["stream"] = read_stream(front, headers)

    assert sum(answer[0] == 200 for answer in answers.values()) > 2 * len(jobs)
    assert texts["stream"].count("event: ") > len(jobs)
    for path, text in texts.items():
        assert [part for part in sorted(hidden) if part in text] == [], (path, text[:4000])


def test_the_same_texts_are_shown_to_the_application(front: wp.Front, jobs: list[str]) -> None:
    """The test above would pass if nothing was recorded."""
    texts = [front.call("GET", f"/v1/jobs/{job_id}/events", None, wp.BEARER)[2].decode() for job_id in jobs]

    assert all(any(text.count(value) for text in texts) for value in (NODE, DRAWN["notify_urls"], DRAWN["fal_key"]))


def test_an_owner_reads_why_its_file_was_refused(front: wp.Front, url: str) -> None:
    """Hiding everything would be safe, and useless."""
    with contextlib.closing(connect(url)) as mine:
        made = front.register(external_id="useful", owner="user")
        hear(mine, made, OutputFile("output[0]", "https://replicate.delivery/0.png"))
        end(mine, made, 0, DeadLetterDecision("VALIDATION_FAILED", "InvalidMedia", "not decodable", retryable=False))
    asked = json.dumps({"owner": "user"}).encode()
    token = front.ask("POST", "/v1/owner-tokens", asked, {**wp.BEARER, "content-type": "application/json"})
    headers = {"authorization": f"Bearer {token.fields['token']}"}

    job = front.ask("GET", f"/v1/jobs/{made.fields['job_id']}", None, headers).fields
    sentence = visibility.OWNER_SENTENCES["VALIDATION_FAILED"]

    assert job["outputs"][0]["message"] == job["errors"][0]["message"] == sentence


ANSWERS: Final = {
    "closed": b"",
    "garbage": b"nonsense\r\n\r\n",
    "long status": b"HTTP/1.1 2" + b"0" * 70_000,
    "status": b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
}


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Serve one connection with these bytes; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):  # nobody came
                conn, _ = server.accept()
                with conn:
                    conn.recv(65536)
                    conn.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


@pytest.mark.parametrize("fault", [*ANSWERS, "refused", "unknown host", "no tls"])
def test_a_failed_notification_names_cause_and_host_only(deps: Deps, fault: str) -> None:
    """Its URL may hold a secret in path and query, and the error of the library quotes it."""
    host = {"unknown host": "nowhere.invalid"}.get(fault, "127.0.0.1")
    secret = secrets.token_hex(8)
    with answering(ANSWERS.get(fault, b"plain\r\n")) as answering_port:
        port = answering_port if fault in ANSWERS or fault == "no tls" else int(cli.nowhere().rpartition(":")[2])
        url = f"{'https' if fault == 'no tls' else 'http'}://{host}:{port}/p{secret}?q={secret}"
        changed = replace(deps, settings=deps.settings.model_copy(update={"notify_urls": (url,)}))
        notification = Notification(uuid4(), 1, uuid4(), "job.failed", datetime.now(UTC))
        with pytest.raises(MoorageError) as refused:
            notifications._send(changed, notification, b"{}", kept_world.Calm())

    assert secret not in f"{refused.value} {refused.value.facts}"
    assert host in str(refused.value) or fault in ("status", "redirect")
