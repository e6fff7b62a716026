"""What operators do, by whatever way: the command line, the API and the console call these functions."""

from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest

from db import dead_letters, notifications, pauses
from db.connection import Connection, fetch_all
from db.dead_letters import DeadLetterFilter
from db.reports import records
from db.reports.status import read_overview
from moorage.errors import Refused
from moorage.problems import Problem, find_problems
from tasks import bulk_dead_letters as bulk
from tasks import pauses as pausing
from tasks.jobs import replay
from tasks.step import Deps
from tests.integration import kept_world as world

ADD_LETTERS = """
INSERT INTO dead_letters (id, subject, subject_id, provider, step, category, error, reason, retryable)
SELECT gen_random_uuid(), 'message', gen_random_uuid(), 'replicate', 'drain', 'POISON', %(error)s, 'x', true
  FROM generate_series(1, %(count)s)
"""


def events(conn: Connection, subject: str) -> list[tuple[Any, ...]]:
    sql = f"SELECT from_state, to_state, reason, actor FROM events WHERE subject = '{subject}' ORDER BY id"
    return [tuple(row.values()) for row in fetch_all(conn, sql, {})]


def open_count(conn: Connection) -> int:
    return int(fetch_all(conn, "SELECT count(*) AS n FROM dead_letters WHERE state = 'open'", {})[0]["n"])


def test_a_page_is_bounded_and_says_what_remains(deps: Deps, conn: Connection) -> None:
    """A thousand rows in one request would hold it, and whoever waits, for a minute."""
    conn.execute(ADD_LETTERS, {"error": "A", "count": 62})
    conn.execute(ADD_LETTERS, {"error": "B", "count": 3})
    criteria = DeadLetterFilter(error="A")

    first = bulk.apply_to_page(deps.database, criteria, "discard", "api ann", limit=50)
    rest = bulk.apply_to_page(deps.database, criteria, "discard", "api ann", after=first.after)

    assert (first.done, first.remaining, bulk.MAX_ROWS) == (50, 12, 500)
    assert (rest.done, rest.remaining, rest.refused) == (12, 0, [])
    assert open_count(conn) == 3
    closed = fetch_all(conn, "SELECT DISTINCT state, closed_by FROM dead_letters WHERE error = 'A'", {})
    assert closed == [{"state": "discarded", "closed_by": "api ann"}]


def test_a_replay_that_fails_again_is_not_replayed_by_the_next_page(deps: Deps, conn: Connection) -> None:
    """Else the loop of the command, or of an application, has no end while files are gone."""
    for name in ("a", "b", "c"):
        world.kept(deps, name, ["https://evil.example/x.png"])
    conn.execute("UPDATE outputs SET source = 'https://evil.example/x.png', category = 'DOWNLOAD_FAILED'")
    after, pages = dead_letters.FIRST, list[int]()

    while len(pages) < 10:
        page = bulk.apply_to_page(deps.database, DeadLetterFilter(), "replay", "cli", after=after, limit=1)
        world.work(deps, *page.wakes)
        after = page.after
        pages.append(page.remaining)
        if not page.remaining:
            break

    assert pages == [2, 1, 0]
    assert open_count(conn) == 3


def test_a_page_stops_when_its_time_is_over(deps: Deps, conn: Connection) -> None:
    """The answer comes before its reader gives up; the next call goes on."""
    conn.execute(ADD_LETTERS, {"error": "A", "count": 5})

    page = bulk.apply_to_page(deps.database, DeadLetterFilter(), "discard", "cli", seconds=-1.0)

    assert (page.done, page.remaining) == (1, 4)


def test_what_refuses_the_action_stays_and_is_passed(deps: Deps, conn: Connection) -> None:
    """Else the same five hundred would be tried again for ever; ids of nothing are named, too."""
    conn.execute(ADD_LETTERS, {"error": "A", "count": 2})
    stranger = uuid4()
    ids = [row["id"] for row in fetch_all(conn, "SELECT id FROM dead_letters ORDER BY id DESC", {})]

    page = bulk.apply_to_page(deps.database, DeadLetterFilter(ids=[*ids, stranger]), "replay", "cli")

    assert (page.done, page.remaining, page.wakes) == (0, 0, [])
    assert [item["id"] for item in page.refused] == [stranger, *ids]
    assert open_count(conn) == 2


def test_the_plan_counts_what_expires(deps: Deps, conn: Connection) -> None:
    """Whoever replays for ten minutes learns afterwards what was lost meanwhile."""
    for name in ("a", "b", "c", "d"):
        world.kept(deps, name, ["https://evil.example/x.png"])
    conn.execute("UPDATE outputs SET expires_at = moment() + interval '1 h'")
    some = (
        "UPDATE outputs SET expires_at = moment() + interval '{}' WHERE id = (SELECT id FROM outputs o ORDER BY id {})"
    )
    conn.execute(some.format("5 min", "LIMIT 1").encode())
    conn.execute(some.format("-5 min", "OFFSET 1 LIMIT 1").encode())

    plan = dead_letters.count_expiring(conn, DeadLetterFilter(category="DOWNLOAD_FAILED"))
    owned = dead_letters.count_expiring(conn, DeadLetterFilter(owner="nobody"))

    assert plan == {"matched": 4, "expiring": 1, "expired": 1}
    assert owned == {"matched": 0, "expiring": 0, "expired": 0}


def test_an_acknowledged_dead_letter_is_open_and_no_problem(deps: Deps, conn: Connection) -> None:
    """What is known and waits for the morning must not hide what is new."""
    conn.execute(ADD_LETTERS, {"error": "A", "count": 2})
    (first, second) = fetch_all(conn, "SELECT id FROM dead_letters ORDER BY id", {})

    page = bulk.apply_to_page(
        deps.database, DeadLetterFilter(ids=[first["id"]]), "acknowledge", "api ann", note="known"
    )
    one_left = letters_problem(conn)
    bulk.apply_to_page(deps.database, DeadLetterFilter(ids=[second["id"]]), "acknowledge", "api ann", note="known, too")

    assert page.done == 1
    assert one_left is not None
    assert one_left.text == "1 open dead letter: 1 POISON"
    assert letters_problem(conn) is None
    assert open_count(conn) == 2
    assert events(conn, "dead_letter")[0] == ("open", "open", "known", "api ann")


def letters_problem(conn: Connection) -> Problem | None:
    facts = {"postgresql": "ok", "broker": "ok", "storage": "ok", "workers": None, "queues": None, "consumers": None}
    with conn.transaction():
        letters = read_overview(conn, [])["dead_letters"]
    return next(iter(find_problems({**facts, "dead_letters": letters})), None)


def test_a_pause_and_its_end_are_events_with_their_actor(deps: Deps, conn: Connection) -> None:
    """Who stopped all downloads at three in the morning is asked at nine."""
    names = deps.providers

    began = pausing.pause(deps.database, names, "keep", actor="api ann", reason="maintenance")
    again = pausing.pause(deps.database, names, "keep", actor="api ben", reason=None)
    since, due = pausing.resume(deps.database, names, "keep", actor="api ben")
    nothing, _ = pausing.resume(deps.database, names, "keep", actor="api ben")

    assert (began, again, nothing) == (since, None, None)
    assert due == {"outputs": 0, "predictions": 0}
    assert events(conn, "pause") == [
        (None, "paused", "keep: maintenance", "api ann"),
        ("paused", "resumed", "keep: maintenance", "api ben"),
    ]
    assert pauses.list_pauses(conn) == []
    with pytest.raises(Refused, match="cannot be paused: use one of keep, direct, fal"):
        pausing.pause(deps.database, names, "replicat", actor="cli", reason=None)


def test_a_notification_is_sent_again(deps: Deps, conn: Connection) -> None:
    """The application lost what it had accepted: its restore is a matter of one call."""
    job_id = world.kept(deps, "a")
    notification_id = uuid4()
    add = """INSERT INTO notifications (id, event_id, job_id, type, state, run_at, ended_at)
             VALUES (%(id)s, 1, %(job_id)s, 'job.succeeded', 'sent', NULL, moment())"""
    conn.execute(add, {"id": notification_id, "job_id": job_id})
    resend = partial(replay.resend_notification, actor="api ann")

    wake = deps.database.run(lambda c: resend(c, notification_id))

    assert (wake.step, wake.row_id) == ("notify", notification_id)
    assert notifications.list_by_job(conn, job_id)[0]["state"] == "waiting"
    assert events(conn, "notification") == [("sent", "waiting", "replayed", "api ann")]
    for wrong, status in ((notification_id, 409), (UUID(int=1), 404)):
        with pytest.raises(Refused) as refused:
            deps.database.run(lambda c, wrong=wrong: resend(c, wrong))
        assert refused.value.status == status


def test_a_dead_letter_of_a_message_is_shown(deps: Deps, conn: Connection) -> None:
    """It has no row, so nothing is due; this raised KeyError."""
    conn.execute(ADD_LETTERS, {"error": "A", "count": 1})
    letter_id = fetch_all(conn, "SELECT id FROM dead_letters", {})[0]["id"]

    report = deps.database.run(lambda c: records.build_report(c, str(letter_id), []))

    assert (report.subject, report.next) == (
        "dead_letter",
        [f"dead letter: moorage dead replay {letter_id}"],
    )
