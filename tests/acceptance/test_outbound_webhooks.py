"""Webhooks out through the real processes: exactly one notification for each end, told whatever dies."""

import pytest
from standardwebhooks import Webhook

from tests.acceptance.conftest import NOTIFY_SECRET
from tests.acceptance.test_failpoint_crashes import run
from tests.acceptance.world import until

# Beside another one in `make test`.
PROVE = ("notify.before_claim", "notify.before_request", "notify.before_commit", "publish.before_notify")
POINTS = (
    "notify.before_claim",
    "notify.after_claim",
    "notify.before_request",
    "notify.after_answer",
    "notify.before_commit",
    "notify.after_commit",
    "publish.before_notify",
    "publish.after_notify",
)


@pytest.mark.parametrize("point", [pytest.param(p, marks=[pytest.mark.prove] * (p in PROVE)) for p in POINTS])
def test_a_crash_of_a_worker_leaves_no_end_untold(world, application, point):
    """Wherever it dies the application hears of the end, at worst twice under one id."""
    until(
        lambda: not world.rows("SELECT 1 FROM notifications WHERE run_at IS NOT NULL"),
        "no other test's notification is sent",
    )
    world.arm(point)

    asked = world.ask({"outputs": 1})
    until(lambda: not world.is_armed(point), f"a crash at {point}")
    world.await_end(asked)
    (notification,) = until(lambda: notifications_of(world, asked, "sent"), "the notification was sent")

    heard = application.of(asked.job_id)
    assert {one.headers["webhook-id"] for one in heard} == {str(notification["id"])}
    assert len(heard) == (2 if point in ("notify.after_answer", "notify.before_commit") else 1)
    assert notifications_of(world, asked) == [notification]
    body = Webhook(NOTIFY_SECRET).verify(heard[0].raw, heard[0].headers)
    assert (body["type"], len(body["data"]["variants"])) == ("job.succeeded", 1)


def test_an_application_that_was_away_is_told_by_one_command(world, application):
    """Its webhooks are dead letters like any other."""
    application.away = True
    asked = world.ask({"outputs": 1})
    world.await_end(asked)
    (notification,) = until(lambda: given_up(world, asked), "the notification was given up on")
    application.away = False

    done = run(world, "dead", "replay", "--step", "notify", "--job", str(asked.job_id), "--yes")

    assert done.returncode == 0, done.stderr
    (sent,) = until(lambda: notifications_of(world, asked, "sent"), "the notification was sent")
    assert sent["id"] == notification["id"]
    assert world.job(asked)["state"] == "succeeded"


def given_up(world, asked):
    """Return the dead notifications of a job, for which three days must pass: what waits is made due."""
    due = """
        UPDATE notifications SET run_at = moment(), woken_at = NULL
         WHERE job_id = %(id)s AND state = 'waiting' AND lease_token IS NULL AND run_at > moment() RETURNING id
    """
    world.rows(due, id=asked.job_id)
    return notifications_of(world, asked, "dead")


def notifications_of(world, asked, state=None):
    """Return the notifications of a job, those in one state if it is given."""
    found = world.rows("SELECT * FROM notifications WHERE job_id = %(id)s ORDER BY event_id", id=asked.job_id)
    return [row for row in found if state in (None, row["state"])]
