"""What is wrong now, from the facts that `moorage status --json` shows: a pure function."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Facts = Mapping[str, Any]  # as worker/status.py builds them; a part that is locked or unavailable is missing or None

OVERDUE_SECONDS: Final = 120.0
EXPIRY_SECONDS: Final = 600.0
STALLED_SECONDS: Final = 300.0
STORAGE_SECONDS: Final = 30.0
ERASURE_SECONDS: Final = 86_400.0
MIN_ENDED: Final = 5  # predictions within the hour, before their shares mean something
FAILED_SHARE: Final = 0.2


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing an operator has to look at. `runbook` is an anchor of docs/runbook.md."""

    code: str
    severity: Literal["critical", "warning"]
    text: str
    remedy: str
    runbook: str
    target: str | None = None  # the queue, provider, worker or pause it is about


def find_problems(facts: Facts) -> list[Problem]:
    """Return the problems, critical ones first."""
    problems = [problem for find in _FINDERS for problem in find(facts)]
    return sorted(problems, key=lambda problem: problem.severity != "critical")


def _find_servers(facts: Facts) -> Iterator[Problem]:
    for code, name, remedy, runbook in (
        ("postgresql", "PostgreSQL", "restore it; restart nothing of moorage", "postgresql-is-unavailable"),
        ("broker", "the broker", "restore it, empty if necessary: dispatch fills it", "the-broker-is-unavailable"),
        ("storage", "storage", "restore it: the URLs of waiting files expire", "storage-is-unavailable"),
    ):
        if facts[code] != "ok":
            yield Problem(f"{code}_unavailable", "critical", f"{name} is {facts[code]}", remedy, runbook)
    if (seconds := facts.get("storage_failing_seconds") or 0) > STORAGE_SECONDS and facts["storage"] == "ok":
        text = f"workers have failed to store files for {_duration(seconds)}, although storage answers here"
        remedy = "compare the workers' settings and network with this host's"
        yield Problem("storage_failing", "critical", text, remedy, "storage-is-unavailable")


def _find_locks(facts: Facts) -> Iterator[Problem]:
    for holder in facts.get("lock_holders") or ():
        text = f"pid {holder['pid']} ({holder['application_name']}) holds locks; {holder['waiting']} sessions wait"
        remedy = f"have its owner commit, or SELECT pg_terminate_backend({holder['pid']})"
        yield Problem("locks_held", "warning", text, remedy, "a-transaction-holds-locks", str(holder["pid"]))
    if names := ", ".join(dict.fromkeys(facts.get("locked") or ())):  # nothing is found in what was not read
        text = f"could not be read: {names}: PostgreSQL is overloaded or a transaction holds locks"
        remedy = "end the session that holds locks, or reduce the load; until then other problems may be hidden"
        yield Problem("facts_unread", "warning", text, remedy, "facts-could-not-be-read")


def _find_workers(facts: Facts) -> Iterator[Problem]:
    """Return what is wrong with workers; none is reported as missing while the broker is unavailable."""
    workers, wakes = facts["workers"], facts["queues"] or {}
    if workers is None:
        return
    if not workers:
        waiting = sum(wakes.get(queue, 0) for queue in facts["consumers"])
        text = f"no worker answered in 3 s; {_count(waiting, 'wake')} in the queues"
        yield Problem(
            "workers_silent", "critical", text, "start one, or restart one that hangs", "workers-none-answers"
        )
        return
    for queue, consumers in facts["consumers"].items():
        if not consumers:
            text = f"queue {queue} has {_count(wakes.get(queue, 0), 'wake')} and no worker that answers"
            remedy = f"start one (moorage worker -Q {queue}), or restart one that hangs"
            yield Problem("queue_without_worker", "critical", text, remedy, "a-queue-without-a-worker", queue)
    held = [lease["leased_by"].rpartition("/")[0] for lease in facts.get("leases") or ()]
    for worker in sorted(set(held) - {*workers, ""}):
        text = f"worker {worker} holds {_count(held.count(worker), 'row')} and did not answer in 3 s"
        remedy = "restart it if it hangs; its rows are released when their leases end"
        yield Problem("worker_silent", "warning", text, remedy, "a-lease-is-late", worker)


def _find_waiting(facts: Facts) -> Iterator[Problem]:
    if late := [sweep["sweep"] for sweep in facts.get("sweeps") or () if sweep["is_late"]]:
        remedy = "start beat (moorage beat) and a worker of the queue sweeps"
        yield Problem("sweep_late", "critical", f"sweeps are late: {', '.join(late)}", remedy, "a-sweep-is-late")
    if failed := [sweep["sweep"] for sweep in facts.get("sweeps") or () if sweep["is_failed"]]:
        remedy = "its reason is in the workers' log: sweep.refused, sweep.interrupted or an error"
        text = f"sweeps do not finish: {', '.join(failed)}"
        yield Problem("sweep_fails", "warning", text, remedy, "a-sweep-is-late")
    if over := [lease for lease in facts.get("leases") or () if lease["is_over"]]:
        text = f"{_count(len(over), 'lease')} ended and not released: their workers died or hang"
        yield Problem("lease_late", "warning", text, "reconcile releases them; see the sweeps", "a-lease-is-late")
    for table, seconds in (facts.get("oldest_due_seconds") or {}).items():
        if seconds > OVERDUE_SECONDS:
            text = f"{table} have been due for {_duration(seconds)}"
            remedy = "look at workers, sweeps and queues; add workers if all are busy"
            yield Problem("overdue", "critical", text, remedy, "the-oldest-due-row-grows-older", table)
    if (seconds := facts.get("keep_stalled_seconds") or 0) > STALLED_SECONDS:
        text = f"files have waited for {_duration(seconds)} and none was kept"
        yield Problem("keep_stalled", "critical", text, "see why they wait", "files-wait-and-none-is-kept")
    seconds = facts.get("soonest_expiry_seconds")
    if seconds is not None and seconds < EXPIRY_SECONDS:
        when = f"expires in {_duration(seconds)}" if seconds > 0 else f"expired {_duration(-seconds)} ago"
        text, remedy = f"the URL of a waiting file {when}", "resume what is paused, restore what is unavailable"
        yield Problem("expiry_soon", "critical", text, remedy, "the-soonest-expiry-is-near-or-past")


def _find_decisions(facts: Facts) -> Iterator[Problem]:
    """Return what waits for an operator's decision."""
    if (seconds := facts.get("erasure_open_seconds") or 0) > ERASURE_SECONDS:
        text = f"the erasure of an owner has been open for {seconds / 3600:.0f} h"
        remedy = "its reason is in the workers' log: erasure.failed"
        yield Problem("erasure_open", "warning", text, remedy, "an-erasure-stays-open")
    for pause in facts.get("pauses") or ():
        reason = f": {pause['reason']}" if pause["reason"] else ""
        text = f"{pause['target']} is paused by {pause['paused_by']}{reason}"
        remedy = f"moorage resume {pause['target']}"
        yield Problem("paused", "warning", text, remedy, "something-is-paused", pause["target"])
    letters: Counter[str] = Counter()
    for row in facts.get("dead_letters") or ():
        letters[row["category"]] += row["unacknowledged"]
    if letters.total():
        causes = ", ".join(f"{count} {category}" for category, count in sorted((+letters).items()))
        text = f"{_count(letters.total(), 'open dead letter')}: {causes}"
        remedy = "remove the cause, then replay, discard or acknowledge them: moorage dead list"
        yield Problem("dead_letters", "warning", text, remedy, "open-dead-letters")


def _find_failing(facts: Facts) -> Iterator[Problem]:
    """Return which providers, or the application, answer with errors."""
    for row in facts.get("failing") or ():
        who = "the application (MOORAGE_NOTIFY_URL)" if row["subject"] == "notification" else row["provider"]
        text = f"{who}: {_count(row['value'], row['subject'])} failed at least twice: {row['example']}"
        runbook = "a-provider-fails-more-than-usual"
        if row["subject"] == "notification":
            runbook = "notifications-fail"
            remedy = "repair what receives notifications; they are sent again until it answers 2xx"
        elif who == "direct":  # URLs of POST /v1/keep
            runbook = "files-wait-and-none-is-kept"
            remedy = "see whether the hosts of these URLs answer; moorage pause keep stops all downloads"
        else:
            remedy = f"see its status page and token; moorage pause {who} stops the attempts"
        yield Problem("attempts_fail", "warning", text, remedy, runbook, row["provider"])
    for breaker in facts.get("breakers") or ():
        kind, _, name = breaker["target"].partition(" ")
        who = f"the download host {name}" if kind == "host" else f"the API of {name}"
        text = f"{who} fails; one request each 5 s until it answers, the others wait: {breaker['reason']}"
        remedy = "see whether it is down, and this machine's network and DNS"
        yield Problem("breaker_open", "warning", text, remedy, "a-circuit-breaker-is-open", name)
    for row in facts.get("webhooks_refused") or ():
        text = f"{row['provider']}: {_count(row['value'], 'webhook')} refused, none accepted since: {row['reason']}"
        remedy = "compare the secret with the provider's, and this machine's clock"
        yield Problem("webhooks_refused", "critical", text, remedy, "webhooks-are-refused", row["provider"])
    for row in facts.get("billing_refused") or ():
        text = f"{row['provider']}: {_count(row['value'], 'submission')} refused within the hour: credit or API token"
        remedy = "see its reason, then the account: pay, or set a valid token"
        yield Problem("billing_refused", "critical", text, remedy, "a-provider-refuses-the-account", row["provider"])
    for provider in facts.get("providers") or ():
        yield from _find_poor_results(provider)


def _find_poor_results(provider: Facts) -> Iterator[Problem]:
    name, ended = provider["provider"], provider["ended_1h"]
    polled, total = ended.get("poll", 0), ended["total"]
    if provider["takes_webhooks"] and polled >= MIN_ENDED and not ended.get("webhook"):
        text = f"{name}: {polled} predictions ended by a poll within the hour, none by a webhook"
        remedy = "see whether its webhooks reach PUBLIC_URL, and whether they are refused"
        yield Problem("webhooks_missing", "warning", text, remedy, "polls-find-lost-webhooks", name)
    if total >= MIN_ENDED and (failed := ended["unsuccessful"]) > FAILED_SHARE * total:
        text = f"{name}: {failed} of {total} predictions failed or were lost within the hour"
        remedy = f"see their reasons: moorage dead list --provider {name}"
        yield Problem("provider_fails", "warning", text, remedy, "a-provider-fails-more-than-usual", name)


_FINDERS: Final[tuple[Callable[[Facts], Iterator[Problem]], ...]] = (
    _find_servers, _find_workers, _find_waiting, _find_locks, _find_failing, _find_decisions,
)  # fmt: skip


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
