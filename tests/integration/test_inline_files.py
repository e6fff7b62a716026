"""Files whose bytes are in a webhook or an answer: in the private bucket, not in PostgreSQL."""

import base64
import secrets
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from db import objects
from embedded.stack import Stack
from moorage import failpoints
from moorage.errors import StorageUnavailable
from storage.s3 import ObjectStore
from tasks.jobs import replay
from tasks.outputs import discard
from tasks.sweeps import retention
from tests.integration.core import World, database_of, png, prediction, world


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "inline")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def delivered(at: World, *files: bytes) -> tuple[Any, Any]:
    """Return a job and the delivery, to be ingested, whose body has these files."""
    external_id = secrets.token_hex(8)
    made = at.registered(external_id)
    return made.job_id, at.delivered(prediction(external_id, "succeeded", [data_uri(data) for data in files]))


def sources(at: World, job_id: Any) -> list[dict[str, Any]]:
    return [at.row("outputs", output_id) for output_id in at.outputs(job_id)]


def has_object(at: World, key: str) -> bool:
    return at.deps.storage.head(at.deps.storage.private_bucket, key) is not None


def test_bytes_of_a_webhook_wait_in_the_private_bucket_and_go_when_the_file_is_kept(at: World) -> None:
    """In a row, each change of it would copy nothing, but every vacuum and backup would read megabytes."""
    job_id, delivery_id = delivered(at, png(1), png(2))

    at.step("ingest", delivery_id)
    waiting = sources(at, job_id)
    objects = [has_object(at, row["source"]) for row in waiting]
    at.keep_all(job_id)
    discard.delete_spooled_inputs(at.deps)

    assert [(row["source_kind"], row["source_data"], row["expires_at"]) for row in waiting] == [
        ("object", None, None)
    ] * 2
    assert objects == [True, True]
    assert at.state("jobs", job_id) == "succeeded"
    assert [row["source"] for row in sources(at, job_id)] == [None, None]
    assert [has_object(at, row["source"]) for row in waiting] == [False, False]


def test_a_poll_stores_bytes_like_a_webhook(at: World) -> None:
    external_id = secrets.token_hex(8)
    made = at.registered(external_id)
    at.source.predictions[external_id] = prediction(external_id, "succeeded", [data_uri(png(3))])
    (prediction_id,) = [row["id"] for row in at.conn.execute("SELECT id FROM predictions").fetchall()]
    at.conn.execute("UPDATE predictions SET run_at = moment()")

    at.step("poll", prediction_id)
    at.keep_all(made.job_id)

    assert [row["source_kind"] for row in sources(at, made.job_id)] == ["object"]
    assert at.state("jobs", made.job_id) == "succeeded"


def test_a_webhook_is_ingested_while_storage_is_unavailable(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes stay in the row: sweeps and other webhooks must not wait behind it."""
    job_id, delivery_id = delivered(at, png(4))

    def refuse(*_: object, **__: object) -> None:
        raise StorageUnavailable("no connection")

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "put", refuse)
        at.step("ingest", delivery_id)
    (waiting,) = sources(at, job_id)
    at.keep_all(job_id)

    assert (at.state("deliveries", delivery_id), waiting["source_kind"]) == ("applied", "inline")
    assert at.state("jobs", job_id) == "succeeded"


def test_a_crash_before_the_commit_leaves_an_object_that_no_row_names(
    at: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The orphan sweep deletes it; the delivery is applied by the next attempt, with an object of its own."""
    job_id, delivery_id = delivered(at, png(5))
    stored: list[str] = []
    put = ObjectStore.put

    def note(store: ObjectStore, bucket: str, key: str, *args: Any, **given: Any) -> None:
        stored.append(key)
        put(store, bucket, key, *args, **given)

    class Crash(BaseException):
        pass

    def crash(file: Any) -> None:
        if file.name == "ingest.before_commit":
            raise Crash

    monkeypatch.setattr(ObjectStore, "put", note)
    with monkeypatch.context() as patched:
        patched.setattr(failpoints, "_SPEC", "@")
        patched.setattr(failpoints, "_disarm", crash)
        with pytest.raises(Crash):
            at.step("ingest", delivery_id)
    before = (at.state("deliveries", delivery_id), at.outputs(job_id))
    at.conn.execute(
        "UPDATE deliveries SET lease_token = NULL, leased_by = NULL, leased_until = NULL, run_at = moment()"
    )
    at.step("ingest", delivery_id)
    (row,) = sources(at, job_id)

    assert before == ("new", [])
    assert len(set(stored)) == 2
    assert row["source"] == stored[1]
    assert at.deps.database.run(lambda conn: objects.find_referenced_keys(conn, stored)) == {stored[1]}


def test_bytes_of_a_refused_file_stay_for_a_replay_and_go_with_the_raw_bodies(at: World) -> None:
    """As those in rows do: then the dead letter says that it cannot be replayed."""
    job_id, delivery_id = delivered(at, png(6)[:50])
    at.step("ingest", delivery_id)
    at.keep_all(job_id)
    (dead,) = sources(at, job_id)
    discard.delete_spooled_inputs(at.deps)
    (letter,) = at.letters(dead["id"])
    for wake in (at.deps.database.run(lambda conn: replay.replay_dead_letter(conn, letter["id"], "test")),):
        assert wake is not None
        at.step("keep", wake.row_id)
    age = timedelta(days=31)
    at.conn.execute("UPDATE outputs SET ended_at = ended_at - %s WHERE id = %s", (age, dead["id"]))

    counts = retention.delete_expired(at.deps, "test")

    assert has_object(at, dead["source"])  # until the orphan sweep
    assert counts["failed_sources"] == 1
    assert sources(at, job_id)[0]["source"] is None
    assert [letter["retryable"] for letter in at.letters(dead["id"]) if letter["state"] == "open"] == [False]
