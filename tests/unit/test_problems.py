"""Problems follow from the facts of `moorage status` alone."""

import re
from pathlib import Path
from typing import Any

import pytest

from moorage.problems import find_problems

RUNBOOK = (Path(__file__).resolve().parents[2] / "docs/runbook.md").read_text(encoding="utf-8")
TITLES = re.findall(r"^## (.+)$", RUNBOOK, re.MULTILINE)
ANCHORS = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in TITLES}
ENDED = {"total": 9, "unsuccessful": 1, "poll": 5, "webhook": 4}
QUIET: dict[str, Any] = {
    "postgresql": "ok", "broker": "ok", "storage": "ok", "workers": ["keep@a", "quick@a"],
    "queues": {"quick": 0, "keep": 3, "sweeps": 0, "keep.dead": 0}, "consumers": {"quick": 1, "keep": 2, "sweeps": 1},
    "leases": [{"leased_by": "keep@a/1", "is_over": False}], "erasure_open_seconds": 86_000.0,
    "sweeps": [{"sweep": "dispatch", "is_late": False, "is_failed": False}],
    "oldest_due_seconds": {"outputs": 3.0}, "soonest_expiry_seconds": 3000.0, "keep_stalled_seconds": 4.0,
    "storage_failing_seconds": None, "pauses": [], "dead_letters": [], "lock_holders": [], "failing": [],
    "providers": [{"provider": "replicate", "takes_webhooks": True, "ended_1h": ENDED}],
}  # fmt: skip
LOST = {"provider": "fal", "takes_webhooks": True, "ended_1h": {"total": 9, "unsuccessful": 0, "poll": 9, "webhook": 0}}
FAILED = {"provider": "fal", "takes_webhooks": True, "ended_1h": {"total": 9, "unsuccessful": 5, "webhook": 9}}
CHANGES: dict[str, dict[str, Any]] = {
    "postgresql_unavailable": {"postgresql": "unavailable: no"},
    "broker_unavailable": {"broker": "unavailable: OOM", "workers": None, "consumers": None, "queues": None},
    "storage_unavailable": {"storage": "unavailable: 403"},
    "storage_failing": {"storage_failing_seconds": 90.0},
    "workers_silent": {"workers": [], "consumers": {"quick": 0, "keep": 0, "sweeps": 0}, "leases": []},
    "queue_without_worker": {"consumers": {"quick": 1, "keep": 0, "sweeps": 1}},
    "worker_silent": {"leases": [{"leased_by": "keep@b/1", "is_over": False}]},
    "lease_late": {"leases": [{"leased_by": "keep@a/1", "is_over": True}]},
    "sweep_late": {"sweeps": [{"sweep": "drain", "is_late": True, "is_failed": False}]},
    "sweep_fails": {"sweeps": [{"sweep": "drain", "is_late": False, "is_failed": True}]},
    "billing_refused": {"billing_refused": [{"provider": "fal", "value": 1}]},
    "erasure_open": {"erasure_open_seconds": 90_000.0},
    "overdue": {"oldest_due_seconds": {"outputs": 130.0}},
    "keep_stalled": {"keep_stalled_seconds": 301.0},
    "expiry_soon": {"soonest_expiry_seconds": -5.0},
    "locks_held": {"lock_holders": [{"pid": 7, "application_name": "psql", "waiting": 2}]},
    "facts_unread": {"locked": ["files kept", "jobs", "files kept"]},
    "paused": {"pauses": [{"target": "keep", "paused_by": "ann", "reason": "test"}]},
    "dead_letters": {
        "dead_letters": [
            {"category": "POISON", "unacknowledged": 2},
            {"category": "POISON", "unacknowledged": 3},
            {"category": "INTERNAL", "unacknowledged": 0},
        ]
    },
    "attempts_fail": {"failing": [{"subject": "file", "provider": "fal", "value": 2, "example": "500"}]},
    "breaker_open": {"breakers": [{"target": "host cdn.example", "reason": "503"}]},
    "webhooks_refused": {"webhooks_refused": [{"provider": "fal", "value": 2, "reason": "bad signature"}]},
    "webhooks_missing": {"providers": [LOST]},
    "provider_fails": {"providers": [FAILED]},
}


def test_a_quiet_system_has_no_problem() -> None:
    """A verdict that is never "all clear" is not read."""
    assert find_problems(QUIET) == []


@pytest.mark.parametrize("code", CHANGES)
def test_each_problem_follows_from_its_fact_alone(code: str) -> None:
    """With what to do, and the section of the runbook that exists."""
    problems = find_problems({**QUIET, **CHANGES[code]})

    assert [problem.code for problem in problems] == [code]
    assert problems[0].remedy
    assert problems[0].runbook in ANCHORS


def test_the_texts_name_what_and_how_many() -> None:
    """The first line of the screen is all that is read at three in the morning."""
    changes = ("queue_without_worker", "dead_letters", "facts_unread", "paused", "workers_silent", "worker_silent")
    texts = {code: find_problems({**QUIET, **CHANGES[code]})[0].text for code in changes}

    assert texts == {
        "queue_without_worker": "queue keep has 3 wakes and no worker that answers",
        "dead_letters": "5 open dead letters: 5 POISON",
        "facts_unread": "could not be read: files kept, jobs: PostgreSQL is overloaded or a transaction holds locks",
        "paused": "keep is paused by ann: test",
        "workers_silent": "no worker answered in 3 s; 3 wakes in the queues",
        "worker_silent": "worker keep@b holds 1 row and did not answer in 3 s",
    }


def test_without_postgresql_the_rest_is_still_reported() -> None:
    """Facts that could not be read are no problems of their own; critical ones are first."""
    facts = {name: QUIET[name] for name in ("broker", "storage", "workers", "queues", "consumers")}

    problems = find_problems({**facts, "postgresql": "unavailable: x", "storage": "unavailable: y"})

    assert [problem.code for problem in problems] == ["postgresql_unavailable", "storage_unavailable"]
    mixed = find_problems({**QUIET, **CHANGES["paused"], **CHANGES["expiry_soon"]})
    assert [problem.severity for problem in mixed] == ["critical", "warning"]


def test_kept_urls_have_no_status_page_and_no_token() -> None:
    facts = {**QUIET, "failing": [{"subject": "file", "provider": "direct", "value": 2, "example": "500"}]}

    (problem,) = find_problems(facts)

    assert "status page" not in problem.remedy
    assert "moorage pause keep" in problem.remedy


@pytest.mark.parametrize(
    ("subject", "provider", "section"),
    [
        ("prediction", "fal", "a-provider-fails-more-than-usual"),
        ("file", "direct", "files-wait-and-none-is-kept"),
        ("notification", "", "notifications-fail"),
    ],
)
def test_failing_attempts_lead_to_the_section_about_what_fails(subject: str, provider: str, section: str) -> None:
    """A provider's status page does not explain why the application accepts no notifications."""
    failing = [{"subject": subject, "provider": provider, "value": 2, "example": "500"}]

    (problem,) = find_problems({**QUIET, "failing": failing})

    assert problem.runbook == section
    assert section in ANCHORS
