"""Builders for tests of the steps: a provider over local HTTP, deliveries as rows, and the shell run in-process."""

import dataclasses
import http.server
import io
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from PIL import Image

import providers
from db import leases
from db.connection import Connection, Database, connect
from egress.guard import EgressGuard
from embedded.stack import Stack
from media.limits import Limits
from moorage import ids, transitions
from moorage.model import Lease, Media, Registration, Step, StoredOutput, Thumbnail, Wake
from moorage.settings import Settings
from storage import buckets, s3
from tasks.jobs import create
from tasks.step import Deps, build_retry_policy
from tests.support.databases import Sessions
from worker import step_runner

LEASED_BY = "node@test/1"
_ensured: set[tuple[str | None, str]] = set()  # endpoint and public bucket that exist: once a session is enough
_EMPTY = """
SET session_replication_role = replica;
DELETE FROM ticks; DELETE FROM events; DELETE FROM dead_letters; DELETE FROM placements; DELETE FROM render_variants;
DELETE FROM renders; DELETE FROM outputs; DELETE FROM predictions; DELETE FROM jobs; DELETE FROM projects;
DELETE FROM deliveries; DELETE FROM notifications; DELETE FROM breakers; DELETE FROM target_attempts;
SET session_replication_role = origin
"""


@dataclass
class Source:
    """A provider's API and file host in one: `predictions` answers polls, `files` answers downloads (status, body)."""

    port: int = 0
    predictions: dict[str, dict[str, Any] | int] = field(default_factory=dict)
    files: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)  # content types of files that have one
    asked: list[str] = field(default_factory=list)
    before_file: Callable[[str], None] = lambda _path: None

    def picture(self, seed: int = 0) -> str:
        """Return the URL of a new small picture."""
        name = f"/files/{secrets.token_hex(4)}.png"
        self.files[name] = (200, png(seed))
        return self.url(name)

    def file(self, name: str, body: bytes, content_type: str | None = None) -> str:
        """Return the URL of a file of this name."""
        path = f"/files/{secrets.token_hex(4)}/{name}"
        self.files[path] = (200, body)
        if content_type is not None:
            self.types[path] = content_type
        return self.url(path)

    def broken(self, status: int = 404, body: bytes = b"") -> str:
        """Return a URL that answers with a status."""
        name = f"/files/{secrets.token_hex(4)}"
        self.files[name] = (status, body)
        return self.url(name)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def answer(self, path: str) -> tuple[int, bytes]:
        self.asked.append(path)
        if not path.startswith("/v1/predictions/"):
            self.before_file(path)
            return self.files.get(path, (404, b""))
        known = self.predictions.get(path.rpartition("/")[2], 404)
        return (known, b"") if isinstance(known, int) else (200, json.dumps(known).encode())


def png(seed: int = 0, size: int = 24) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (seed % 256, seed // 256 % 256, 90)).save(out, "PNG")
    return out.getvalue()


@contextmanager
def serving() -> Iterator[Source]:
    """Run a source on a free port."""
    source = Source()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = source.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if content_type := source.types.get(self.path):
                self.send_header("Content-Type", content_type)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
            """Stay quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        source.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield source
        finally:
            server.shutdown()
            thread.join()


def settings_of(stack: Stack, database_url: str, source: Source, **changes: Any) -> Settings:
    environment = stack.environment()
    given: dict[str, Any] = {
        "database_url": database_url,
        "broker_url": environment["CELERY_BROKER_URL"],
        "s3_endpoint_url": environment["AWS_ENDPOINT_URL_S3"],
        "aws_access_key_id": environment["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
        "egress_allow": (f"127.0.0.1:{source.port}",),
        "replicate_api_url": source.url(""),
        "replicate_api_token": "r8_token",
        "replicate_output_hosts": ("127.0.0.1",),
        **changes,
    }
    return Settings(_env_file=None, **given).with_constants(wait_base_seconds=0.001)


@dataclass
class World:
    """One database with a provider: registers, delivers, and carries steps out through the real shell."""

    deps: Deps
    conn: Connection
    source: Source
    database_url: str

    # --- making rows

    def registered(self, external_id: str | None = None, **asked: Any) -> create.CreatedJob:
        given = Registration(
            provider="replicate", external_id=external_id or secrets.token_hex(8), owner="ann", **asked
        )
        return create.register_prediction(
            self.deps.database, self.deps.settings, self.deps.providers["replicate"], given
        )

    def delivered(self, body: bytes | dict[str, Any], webhook_id: str | None = None) -> UUID:
        """Insert a delivery as the receiver does."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        delivery_id = ids.uuid7()
        self.conn.execute(
            "INSERT INTO deliveries (id, provider, webhook_id, body, body_sha256) VALUES (%s, 'replicate', %s, %s, '')",
            (delivery_id, webhook_id or secrets.token_hex(8), raw),
        )
        return delivery_id

    def keeping(self, urls: list[str], **asked: Any) -> create.CreatedJob:
        """Return a job whose prediction has succeeded with these files; its outputs wait."""
        external_id = secrets.token_hex(8)
        made = self.registered(external_id, **asked)
        self.step("ingest", self.delivered(prediction(external_id, "succeeded", urls)))
        return made

    def ingested(self, urls: list[str], **asked: Any) -> list[Wake]:
        """Return the wakes of a success with these files."""
        external_id = secrets.token_hex(8)
        self.registered(external_id, **asked)
        return self.step("ingest", self.delivered(prediction(external_id, "succeeded", urls)))

    # --- carrying out

    def step(self, step: Step, row_id: UUID) -> list[Wake]:
        """Take one wake, as a worker does."""
        return step_runner._claim_and_run(self.deps, step, row_id, LEASED_BY).wakes

    def claim(self, table: Any, row_id: UUID, states: tuple[str, ...], **changes: Any) -> Lease | None:
        given = {"leased_by": LEASED_BY, "lease_seconds": 30.0, "max_crashes": 5, **changes}
        steps = (step for step, (name, known, _) in leases.WORK.items() if name == table and states[0] in known)
        return leases.claim(self.conn, next(steps), row_id, **given)

    def claimed_output(self, output_id: UUID) -> Lease:
        lease = self.claim("outputs", output_id, ("waiting",))
        assert lease is not None
        return lease

    def keep_all(self, job_id: UUID) -> None:
        for output_id in self.outputs(job_id):
            self.step("keep", output_id)

    @contextmanager
    def beside(self) -> Iterator[Deps]:
        """Give dependencies with a connection of their own, for another thread."""
        database = sessions.take_database(self.database_url)
        try:
            yield dataclasses.replace(self.deps, database=database)
        finally:
            give_back_sessions(self.database_url, database)

    @contextmanager
    def later(self, shift: str) -> Iterator["World"]:
        """Give this world with its clock shifted, over sessions of its own."""
        name = self.conn.info.dbname
        database, conn = take_sessions(self.database_url)
        self.conn.execute(f"ALTER DATABASE {name} SET moorage.clock_shift = '{shift}'")  # for sessions begun meanwhile
        try:
            for session in (database.connection(), conn):
                session.execute(f"SET moorage.clock_shift = '{shift}'")
            yield dataclasses.replace(self, deps=dataclasses.replace(self.deps, database=database), conn=conn)
        finally:
            self.conn.execute(f"ALTER DATABASE {name} RESET moorage.clock_shift")
            give_back_sessions(self.database_url, database, conn)

    def changed(self, constants: Mapping[str, Any] | None = None, **settings: Any) -> "World":
        """Return this world with other settings and constants."""
        given = self.deps.settings.model_copy(update=settings).with_constants(**constants or {})
        return dataclasses.replace(
            self, deps=dataclasses.replace(self.deps, settings=given, policy=build_retry_policy(given))
        )

    # --- looking

    def row(self, table: str, row_id: UUID) -> dict[str, Any]:
        found = self.conn.execute(f"SELECT * FROM {table} WHERE id = %s", (row_id,)).fetchone()
        assert found is not None
        return found

    def state(self, table: str, row_id: UUID) -> str:
        return str(self.row(table, row_id)["state"])

    def outputs(self, job_id: UUID) -> list[UUID]:
        rows = self.conn.execute("SELECT id FROM outputs WHERE job_id = %s ORDER BY idx", (job_id,)).fetchall()
        return [row["id"] for row in rows]

    def letters(self, subject_id: UUID | None = None) -> list[dict[str, Any]]:
        sql = "SELECT * FROM dead_letters WHERE %s::uuid IS NULL OR subject_id = %s ORDER BY created_at"
        return self.conn.execute(sql, (subject_id, subject_id)).fetchall()

    def edges(self, subject: str, subject_id: UUID) -> list[tuple[str | None, str]]:
        sql = "SELECT from_state, to_state FROM events WHERE subject = %s AND subject_id = %s ORDER BY id"
        return [(e["from_state"], e["to_state"]) for e in self.conn.execute(sql, (subject, subject_id)).fetchall()]

    def one(self, sql: str, *args: Any) -> Any:
        row = self.conn.execute(sql, args).fetchone()
        return next(iter(row.values())) if row else None


def prediction(external_id: str, status: str, output: Any = None, **more: Any) -> dict[str, Any]:
    """Return a prediction as Replicate's API and webhooks show it."""
    return {"id": external_id, "status": status, "output": output, **more}


def kept(job_id: UUID, idx: int, lease: Lease) -> StoredOutput:
    """Return the facts of a file that nobody stored."""
    thumb = Thumbnail(data=b"webp", sha256="b" * 64, width_px=4, height_px=4)
    key = f"renders/{job_id}/{idx}-{lease.token.hex[:8]}"
    media = Media("image", "png", "image/png", "png", 4, 4, 1)
    return StoredOutput(media, 10, "a" * 64, f"{key}.png", thumb, f"{key}_thumb.webp", None)


of_files = list[str]()  # URLs of databases that the tests of a file share
sessions = Sessions()  # with the last of these


def take_sessions(database_url: str) -> tuple[Database, Connection]:
    """Return what a worker process has, and a connection for a test's own eyes; close those of earlier test files."""
    sessions.close(*(url for url in of_files if url != database_url))
    return sessions.take_database(database_url), sessions.take_conn(database_url)


def give_back_sessions(database_url: str, *given: Database | Connection) -> None:
    """Keep sessions for the next test of the file."""
    sessions.give_back(database_url, *given)
    if database_url not in of_files:
        sessions.close(database_url)


@contextmanager
def world(stack: Stack, database_url: str, **changes: Any) -> Iterator[World]:
    """Give a world; at its end every event written in it must be an edge of the lifecycle."""
    with serving() as source:
        settings = settings_of(stack, database_url, source, **changes)
        # A busy machine takes longer than the usual 20 s to start a decoder.
        limits = dataclasses.replace(Limits.from_settings(settings), poster_seconds=170)
        database, conn = take_sessions(database_url)
        deps = Deps(
            settings=settings,
            database=database,
            storage=s3.ObjectStore(settings),
            providers=providers.load(settings),
            session=EgressGuard(settings.egress_allow).new_session(limits),
            limits=limits,
            policy=build_retry_policy(settings),
        )
        buckets_of = (settings.s3_endpoint_url, settings.s3_public_bucket)
        if buckets_of not in _ensured:
            buckets.ensure_buckets(deps.storage, settings)
            _ensured.add(buckets_of)
        try:
            made = World(deps, conn, source, database_url)
            yield made
            conn = made.conn = conn if not conn.closed else connect(database_url)  # its server may have died
            assert strange_edges(conn) == []
            assert waiting_without_end(conn) == []
        finally:
            conn.execute(_EMPTY)  # a database a test file is quick, one a test is not
            deps.session.close()
            give_back_sessions(database_url, database, conn)


def strange_edges(conn: Connection) -> list[dict[str, Any]]:
    """Return events that are no edge of the lifecycle."""
    rows = conn.execute("SELECT subject, subject_id, from_state, to_state, reason FROM events ORDER BY id").fetchall()
    return [row for row in rows if (row["from_state"], row["to_state"]) not in transitions.TRANSITIONS[row["subject"]]]


def waiting_without_end(conn: Connection) -> list[dict[str, Any]]:
    """Return jobs that wait for nothing: keeping without a live output, settled with one."""
    return conn.execute("""
        SELECT j.id, j.state FROM jobs j
         WHERE (j.state = 'keeping') IS DISTINCT FROM
               EXISTS (SELECT FROM outputs o WHERE o.job_id = j.id AND o.state = 'waiting' AND o.deferred_at IS NULL)
    """).fetchall()


def database_of(stack: Stack, template: str, name: str) -> str:
    """Return the URL of a migrated database for one test file; `world` leaves it empty."""
    url = stack.postgres.create_database(f"moorage_core_{name}", template=template)
    of_files.append(url)
    return url


def together(*works: Callable[[], Any], seconds: float = 120.0) -> None:
    """Run works at the same moment, each in a thread; the first error of any is raised."""
    barrier, errors = threading.Barrier(len(works)), []

    def run(work: Callable[[], Any]) -> None:
        try:
            barrier.wait(seconds)
            work()
        except BaseException as error:  # noqa: BLE001 (the outermost line of a thread; raised again below)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def wait_until(look: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Return what `look` finds as soon as it is truthy."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not seen within {seconds} s"
        time.sleep(0.1)
    return found


class Held:
    """A lease's life that goes on."""

    def check(self) -> None:
        """Go on."""

    def hand_back_later(self, lease: object, error: object) -> None:
        """Leave it to the lease."""

    def ensure_held(self) -> None:
        """Go on."""


def new_token() -> UUID:
    return uuid4()
