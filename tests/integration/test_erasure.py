"""Erasing an owner: nothing of it remains, others are untouched, and a crash anywhere is continued."""

import hashlib
import io
import json
from typing import Any, Final
from uuid import UUID, uuid4

import pytest

from db import api_tokens, owner_token_revocations, ticks
from db.connection import Connection
from db.reports.status import read_overview
from embedded.stack import Stack
from moorage.errors import StorageRefused
from moorage.ids import uuid7
from moorage.owner_tokens import OwnerToken
from storage import keys
from tasks import erasure, erasure_request
from tasks.outputs import discard
from tasks.step import Deps
from tasks.sweeps import retention
from tests.integration import command_line as cli
from tests.integration import kept_world as world
from tests.integration import web_process as wp
from tests.integration.test_retention import CORRUPT, findings, rows, values

OWNER: Final = "Zoë Quennell/5"  # its object keys are percent-encoded
PROMPT: Final = "zebracrossing at night"
TRACES: Final = ("Quennell", "zebracrossing")
POINTS: Final = (
    "erase_request.before_commit",
    "erase_request.after_commit",
    "erase.after_tombstone",
    "erase.after_objects",
    "erase.after_rows",
    "erase.after_uploads",
    "erase.before_finish",
)
SHORT: Final = ("erase.after_rows",)  # of `make test`
X_SHA256: Final = hashlib.sha256(b"x").hexdigest()
WAITED: Final = "UPDATE erasures SET requested_at = requested_at - interval '11 min'"  # longer than WAIT_SECONDS


def deliver(deps: Deps, external_id: str, **more: Any) -> Any:
    body = {"id": external_id, "status": "succeeded", "input": {"prompt": PROMPT}, **more}
    return world.deliver(deps, body)


def register(deps: Deps, external_id: str, owner: str = OWNER, **more: Any) -> UUID:
    return cli.register_one(deps, external_id, owner=owner, prompt=PROMPT, **more).job_id


def make_jobs(deps: Deps, owner: str, prefix: str) -> dict[str, UUID]:
    """Return jobs of an owner: kept in a project, failed with a quarantined file, and one whose render was deleted."""
    outputs = {"kept": [world.picture(), world.picture("blue")], "failed": [CORRUPT], "deleted": [world.picture()]}
    made = {}
    for name, files in outputs.items():
        made[name] = register(deps, f"{prefix}{name}", owner, project_id=f"{owner[:3]} film", scene=1)
        world.work(deps, deliver(deps, f"{prefix}{name}", output=files))
    discard.delete_spooled_inputs(deps)
    deps.database.run(
        lambda conn: erasure.delete_render.delete_render(
            conn, made["deleted"], asset_base=deps.asset_base, actor="tests", reason="tests"
        )
    )
    return made


def add_upload(deps: Deps, conn: Connection, owner: str) -> None:
    """Store an upload, an object of the owner that no row names, and one in quarantine."""
    upload_id, bucket = uuid7(), deps.storage.private_bucket
    key = keys.build_upload_key(owner, upload_id, "png")
    orphan = keys.build_upload_key(owner, uuid7(), "png")
    for name in (key, orphan, keys.build_quarantine_key(orphan)):
        deps.storage.put(bucket, name, io.BytesIO(b"x"), size=1, sha256=X_SHA256, content_type="image/png")
    conn.execute(
        "INSERT INTO uploads (id, owner, key, media, format, content_type, bytes, sha256)"
        " VALUES (%s, %s, %s, 'image', 'png', 'image/png', 1, %s)",
        [upload_id, owner, key, X_SHA256],
    )


def leave_traces(deps: Deps, conn: Connection, jobs: dict[str, UUID]) -> None:
    """Let sweeps and late webhooks write the owner's name and prompt into other tables."""
    retention.count_storage_use(deps)
    key = keys.build_upload_key(OWNER, uuid4(), "png")
    conn.execute(
        "INSERT INTO cursors (sweep, place, after_key)"
        " VALUES ('orphans', 'private ', %s), ('progress', 'projects', %s)",
        [key, f"{OWNER}/Zoë film"],
    )
    deliver(deps, "late")  # never parsed, and then unmatched for good
    conn.execute(
        "UPDATE deliveries SET state = 'dead', external_id = 'ankept', run_at = NULL, ended_at = moment()"
        " WHERE state = 'new'"
    )
    conn.execute(
        "INSERT INTO dead_letters (id, subject, subject_id, provider, step, category, error, reason, retryable)"
        " SELECT gen_random_uuid(), 'delivery', id, provider, 'ingest', 'INTERNAL', 'X', %s, true FROM deliveries"
        " WHERE prediction_id IS NULL",
        [PROMPT],
    )
    conn.execute("UPDATE events SET reason = %s WHERE job_id = %s", [f"{OWNER}: {PROMPT}", jobs["kept"]])


def find_traces(deps: Deps, conn: Connection) -> list[str]:
    """Return the columns and object keys that hold the owner's name or prompt."""
    columns = conn.execute(
        "SELECT table_name, column_name, data_type FROM information_schema.columns JOIN pg_tables"
        " ON tablename = table_name AND schemaname = table_schema WHERE table_schema = 'public'"
        " AND data_type IN ('text', 'json', 'jsonb', 'bytea', 'ARRAY', 'character varying')"
    ).fetchall()
    assert len(columns) > 80
    found = []
    for column in columns:
        name, table = column["column_name"], column["table_name"]
        text = f"encode({name}, 'escape')" if column["data_type"] == "bytea" else f"{name}::text"
        sql = f"SELECT count(*) AS n FROM {table} WHERE {text} ~ '{'|'.join(TRACES)}'"
        found += [f"{table}.{name}"] if values(conn, sql) != [0] else []
    for bucket in (deps.storage.public_bucket, deps.storage.private_bucket):
        found += [item.key for item in deps.storage.list_objects(bucket, "") if TRACES[0] in item.key]
    return found


def list_objects(deps: Deps, jobs: dict[str, UUID]) -> list[str]:
    """Return the objects of jobs, wherever they are."""
    places = [("public_bucket", ""), ("private_bucket", ""), ("private_bucket", keys.QUARANTINE_PREFIX)]
    return [
        item.key
        for job_id in jobs.values()
        for bucket, prefix in places
        for item in deps.storage.list_objects(getattr(deps.storage, bucket), f"{prefix}renders/{job_id}/")
    ]


@pytest.fixture
def jobs(deps: Deps, conn: Connection) -> dict[str, UUID]:
    """Return the jobs of the owner to be erased; another one has the same."""
    made = make_jobs(deps, OWNER, "an")
    add_upload(deps, conn, OWNER)
    leave_traces(deps, conn, made)
    return made


def test_nothing_of_an_erased_owner_remains(deps: Deps, conn: Connection, jobs: dict[str, UUID]) -> None:
    """Not in a row, an event, a position of a sweep or a key; and everything of others does."""
    others = make_jobs(deps, "bob", "bo")
    before, theirs = set(find_traces(deps, conn)), list_objects(deps, others)
    token = OwnerToken(OWNER, 2_000_000_000)

    requested = erasure_request.request_erasure(deps.database, OWNER)
    finished = erasure.continue_erasure(deps, requested, "tests")

    assert {"jobs.owner", "jobs.prompt", "deliveries.body", "events.reason", "cursors.after_key"} <= before
    assert finished is not None
    assert finished["removed"] == {
        "jobs": 3, "predictions": 3, "outputs": 4, "renders": 2, "deliveries": 4, "objects": 10,
        "uploads": 1, "projects": 1,
    }  # fmt: skip
    assert find_traces(deps, conn) == ["deliveries.body", "jobs.prompt"]  # of bob, who had the same idea
    assert values(conn, "SELECT DISTINCT owner FROM jobs") == ["bob"]
    assert list_objects(deps, jobs) == []
    assert list_objects(deps, others) == theirs
    assert token.is_revoked(deps.database.run(lambda c: owner_token_revocations.find(c, [token])))
    assert findings(deps) == []


def test_an_erasure_waits_for_its_predictions_and_then_no_longer(deps: Deps, conn: Connection) -> None:
    """A run at the provider is cancelled, as it costs money; but a provider that is away does not keep the data."""
    register(deps, "runs")
    requested = erasure_request.request_erasure(deps.database, OWNER)

    due = ticks.claim_slot(deps.database, "discard", 1e9)
    assert due is not None
    assert due.due == ["erasures"]
    assert erasure.continue_erasures(deps, "tests") == {"erased": 0}
    assert values(conn, "SELECT state FROM jobs") == ["cancelled"]
    assert values(conn, "SELECT cancel_reason IS NOT NULL FROM predictions") == [True]
    assert erasure_request.request_erasure(deps.database, OWNER)["id"] == requested["id"]
    conn.execute(WAITED)
    assert erasure.continue_erasures(deps, "tests") == {"erased": 1}
    assert erasure.continue_erasures(deps, "tests") == {}
    assert find_traces(deps, conn) == []


def list_uploads(deps: Deps) -> list[str]:
    """Return the keys of the owner's uploads and of their like in quarantine."""
    prefix = keys.build_upload_prefix(OWNER)
    starts = (prefix, keys.build_quarantine_key(prefix))
    return [item.key for start in starts for item in deps.storage.list_objects(deps.storage.private_bucket, start)]


def test_an_erasure_that_stays_open_is_told(deps: Deps, conn: Connection) -> None:
    """Somebody was promised that nothing remains."""
    conn.execute("INSERT INTO erasures (id, owner) VALUES (gen_random_uuid(), 'bob')")
    conn.execute("UPDATE erasures SET requested_at = moment() - interval '2 days' WHERE owner = 'bob'")

    assert read_overview(conn, [])["erasure_open_seconds"] == pytest.approx(172_800, abs=60)


def test_a_pass_that_comes_late_deletes_nothing_of_an_owner_who_came_back(deps: Deps, conn: Connection) -> None:
    """A worker listed the erasure and was busy with another one, while the command finished it."""
    listed = erasure_request.request_erasure(deps.database, OWNER)
    assert erasure.continue_erasure(deps, listed, "tests") is not None
    add_upload(deps, conn, OWNER)
    theirs = list_uploads(deps)

    assert erasure.continue_erasure(deps, listed, "tests") is None

    assert len(theirs) == 3
    assert list_uploads(deps) == theirs
    assert values(conn, "SELECT deleted_at IS NULL FROM uploads") == [True]


def test_an_upload_that_began_before_the_end_of_an_erasure_is_refused(deps: Deps) -> None:
    """Its object may have been deleted by the last pass; recorded, it would be a row without an object."""
    requested = erasure_request.request_erasure(deps.database, OWNER)
    upload = OwnerToken(OWNER, 0)

    def is_refused() -> bool:
        return upload.is_revoked(deps.database.run(lambda c: owner_token_revocations.find(c, [upload])))

    before = is_refused()
    assert erasure.continue_erasure(deps, requested, "tests") is not None

    assert (before, is_refused()) == (False, True)


def test_an_erasure_that_always_fails_does_not_stop_others(
    deps: Deps, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage refuses one of its objects, at each tick."""
    for owner in (OWNER, "bob", "eve"):
        add_upload(deps, conn, owner)
        erasure_request.request_erasure(deps.database, owner)
    delete = deps.storage.delete

    def refuse(bucket: str, key: str) -> None:
        if "Quennell" in key:
            raise StorageRefused("delete: 403")
        delete(bucket, key)

    monkeypatch.setattr(deps.storage, "delete", refuse)
    assert erasure.continue_erasures(deps, "tests") == {"erased": 2}
    assert values(conn, "SELECT owner FROM erasures WHERE finished_at IS NULL") == [OWNER]


@pytest.mark.parametrize("in_batch", [True, False])
def test_a_webhook_about_an_erased_prediction_leaves_no_trace(deps: Deps, conn: Connection, in_batch: bool) -> None:
    """The provider reports the cancellation afterwards, with the prompt."""
    register(deps, "runs")
    erasure_request.request_erasure(deps.database, OWNER)
    conn.execute(WAITED)
    erasure.continue_erasures(deps, "tests")
    lease = world.claim(deps, deliver(deps, "runs", output=[world.picture()]))

    if in_batch:
        assert world.ingest.run_batch(deps, [lease]) == ([], [])
    else:
        assert world.ingest.run(deps, lease, world.Calm()) == []

    assert values(conn, "SELECT state FROM deliveries") == ["ignored"]
    assert find_traces(deps, conn) == []
    assert findings(deps) == []


@pytest.mark.parametrize("point", [pytest.param(p, marks=() if p in SHORT else pytest.mark.prove) for p in POINTS])
def test_an_erasure_is_continued_after_a_crash(
    stack: Stack, database_url: str, deps: Deps, conn: Connection, jobs: dict[str, UUID], point: str
) -> None:
    """The machine may fail at any line; what is left is then neither visible nor forgotten."""
    command = ("owner", "erase", OWNER, "--yes", "--json")

    before = findings(deps)  # of what the test inserted without events
    killed = cli.run(cli.environment(stack, database_url, MOORAGE_FAILPOINT=point), *command)
    between = findings(deps)
    visible = values(conn, "SELECT count(*) FROM variants WHERE owner <> 'bob'")
    again = cli.run(cli.environment(stack, database_url), *command)

    assert killed.returncode == -9, killed.stderr
    assert again.returncode == 0, again.stderr
    assert [finding for finding in between if finding not in before] == findings(deps) == []
    assert point.startswith("erase_request.") or visible[0] < 2
    assert find_traces(deps, conn) == []
    assert list_objects(deps, jobs) == []
    assert json.loads(again.stdout)["removed"]["jobs"] == 3
    assert set(rows(conn)) <= {
        "erasures",
        "erased_predictions",
        "owner_token_revocations",
        "events",
        "ticks",
        "cursors",
    }


def test_an_admin_erases_over_http(url: str, front: wp.Front, mine: Connection) -> None:
    """An application may not: it serves the owner's requests."""
    body, sent = json.dumps({"owner": OWNER}).encode(), {"content-type": "application/json"}
    shop = mine.execute("SELECT 1").fetchall() and api_tokens.create(mine, "shop", "application")[1]

    refused = front.ask("POST", "/v1/erasures", body, {"authorization": f"Bearer {shop}", **sent})
    made = front.ask("POST", "/v1/erasures", body, {**wp.BEARER, **sent})
    again = front.ask("POST", "/v1/erasures", body, {**wp.BEARER, **sent})
    read = front.get(f"/v1/erasures/{made.fields['erasure_id']}")

    assert (refused.status, made.status, read.status) == (403, 202, 200)
    assert made.fields == again.fields == read.fields
    assert (read.fields["state"], read.fields["removed"]) == ("erasing", {})
    assert front.get(f"/v1/erasures/{uuid4()}").status == 404
