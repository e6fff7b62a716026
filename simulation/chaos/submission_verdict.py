"""After the drill: what became of every order, by what the stand-in made, our history, and what readers are shown."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from db.connection import Connection, Row, fetch_all
from simulation.chaos.ledger import Ledger, read
from simulation.chaos.submission_load import Order, Ordered

FINAL: Final = ("succeeded", "partial", "failed", "cancelled")
JUMP_SECONDS: Final = 300.0  # a jump of the clock may shorten what was ordered so long before it

JOBS = """
SELECT id, idempotency_key AS name, state, category, reason,
       EXISTS (SELECT FROM predictions p WHERE p.id = chosen_id AND p.provider = 'placeholder') AS shows_placeholder
  FROM jobs WHERE fallback_chain IS NOT NULL
"""

TRIES = """
SELECT p.job_id, p.entry, p.provider, p.external_id, p.key_sha256, p.state, p.reason,
       p.submit_uncertain AS uncertain,
       EXISTS (SELECT FROM outputs o WHERE o.prediction_id = p.id AND o.source_expired) AS expired
  FROM predictions p JOIN jobs j ON j.id = p.job_id
 WHERE j.fallback_chain IS NOT NULL AND p.entry IS NOT NULL ORDER BY p.seq
"""

SHOWN = """
SELECT v.render_id AS job_id, v.sha256, v.bytes, v.is_placeholder, o.path, p.external_id
  FROM variants v JOIN outputs o ON o.id = v.output_id JOIN predictions p ON p.id = o.prediction_id
  JOIN jobs j ON j.id = v.render_id WHERE j.fallback_chain IS NOT NULL
"""


@dataclass(slots=True)
class Account:
    """What became of the orders."""

    sent: int = 0
    kept: int = 0
    placeholders: int = 0
    failed: int = 0
    tries: int = 0
    uncertain: int = 0
    made: int = 0
    unseen: int = 0  # made, and nobody on our side ever learned its id
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Return the numbers by name."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, int)}

    def __str__(self) -> str:
        ended = f"{self.kept} kept, {self.placeholders} by placeholder, {self.failed} failed"
        made = f"{self.made} made and {self.unseen} of them never seen"
        return f"{self.sent} sent: {ended}; {self.tries} tries, {self.uncertain} uncertain, {made}"


@dataclass(frozen=True, slots=True)
class Case:
    """An order beside what is known of it."""

    order: Order
    job: Row
    tries: Sequence[Row]
    shown: Sequence[Row]
    made: Sequence[Mapping[str, Any]]  # the ledger's lines
    jumped: bool

    @property
    def name(self) -> str:
        """Return how findings name it."""
        return f"{self.order.name} (job {self.job['id']}, {self.job['state']})"


def judge(
    conn: Connection,
    lines: Iterable[Mapping[str, Any]],
    ordered: Sequence[Ordered],
    jumps: Sequence[tuple[float, float]] = (),
) -> Account:
    """
    Compare what was ordered and acknowledged with what was made and what is shown.

    Args:
        lines: of the stand-in's ledger.
        jumps: when the database's clock was an hour off, from and to in Unix seconds: then limits passed that had not.
    """
    account, ledger = Account(sent=len(ordered)), read(lines)
    jobs, tries, shown = fetch_all(conn, JOBS), _by_job(fetch_all(conn, TRIES)), _by_job(fetch_all(conn, SHOWN))
    for one in ordered:
        rows = [row for row in jobs if row["name"] == one.order.name]
        if _acknowledged(one, rows, account):
            made = [line for entry in one.order.chain for line in ledger.made.get(entry.prompt, ())]
            jumped = any(began - JUMP_SECONDS <= one.at <= ended + 1 for began, ended in jumps)
            of_job = rows[0]["id"]
            case = Case(one.order, rows[0], tries.get(of_job, []), shown.get(of_job, []), made, jumped)
            _count(case, account)
            _end(case, ledger, account)
            _made(case, ledger, account)
    names = {one.order.name for one in ordered}
    account.unexpected += [f"job {row['id']} was never ordered" for row in jobs if row["name"] not in names]
    return account


def _by_job(rows: Iterable[Row]) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row["job_id"], []).append(row)
    return found


def _acknowledged(one: Ordered, rows: Sequence[Row], account: Account) -> bool:
    """Return whether an order has its one job."""
    ids = {str(row["id"]) for row in rows} | set(one.job_ids)
    if not rows:
        account.lost.append(f"{one.order.name} was acknowledged and has no job")
    elif len(ids) > 1:
        account.doubled.append(f"{one.order.name} has {len(ids)} jobs: {', '.join(sorted(ids))}")
    return len(ids) == 1 and bool(rows)


def _count(case: Case, account: Account) -> None:
    account.tries += len(case.tries)
    account.uncertain += sum(row["uncertain"] for row in case.tries)
    account.made += len(case.made)
    account.kept += any(not row["is_placeholder"] for row in case.shown)
    account.placeholders += any(row["is_placeholder"] for row in case.shown)
    account.failed += case.job["state"] == "failed"


def _end(case: Case, ledger: Ledger, account: Account) -> None:
    if case.job["state"] not in FINAL:
        account.lost.append(f"{case.name} has not ended")
    elif any(not row["is_placeholder"] for row in case.shown):
        _files(case, ledger, account)
    else:
        _without(case, account)
        _excused(case, ledger, account)


def _files(case: Case, ledger: Ledger, account: Account) -> None:
    """The files shown are those of one prediction that was made for the order: all, once, byte for byte."""
    whose = sorted({str(row["external_id"]) for row in case.shown})
    paths = Counter(row["path"] for row in case.shown)
    if any(row["is_placeholder"] for row in case.shown):
        account.unexpected.append(f"{case.name} shows a placeholder beside its files")
        return
    if len(whose) > 1 or max(paths.values()) > 1:
        account.doubled.append(f"{case.name} shows {len(case.shown)} files of {', '.join(whose)}")
        return
    if whose[0] not in {line["prediction"] for line in case.made}:
        account.unexpected.append(f"{case.name} shows files of {whose[0]}, which was not made for it")
        return
    expected = ledger.files.get(whose[0], {})
    is_expired = case.jumped and any(row["expired"] for row in case.tries)
    if case.job["state"] != "succeeded" and not is_expired:
        account.unexpected.append(f"{case.name} has files and says: {case.job['reason']}")
    if not is_expired:
        account.lost += [f"{case.name} does not show {whose[0]} {path}" for path in expected.keys() - paths.keys()]
    for row in case.shown:
        line = expected.get(row["path"])
        if line is None or (row["sha256"], row["bytes"]) != (line["sha256"], line["bytes"]):
            account.unexpected.append(f"{case.name} shows {whose[0]} {row['path']} with other bytes than were made")


def _without(case: Case, account: Account) -> None:
    """Without files a job has the placeholder that it asked for, and says so, or it has failed with a reason."""
    state, reason = case.job["state"], case.job["reason"] or ""
    if case.order.placeholder:
        if len(case.shown) != 1 or state != "partial" or not case.job["shows_placeholder"] or not reason:
            account.unexpected.append(f"{case.name} shows {len(case.shown)} placeholders and says: {reason}")
    elif case.shown:
        account.unexpected.append(f"{case.name} shows a placeholder that it did not ask for")
    elif state != "failed" or not case.job["category"] or not reason:
        account.unexpected.append(f"{case.name} has no files and says: {reason}")


def _excused(case: Case, ledger: Ledger, account: Account) -> None:
    """Where there are no files, each entry has been tried and brought none, and none that were made lie about."""
    for number, entry in enumerate(case.order.chain):
        tries = [row for row in case.tries if row["entry"] == number]
        if not tries:
            account.lost.append(f"{case.name} never came to {entry.prompt}")
        elif entry.fails is None and not case.jumped and not any(row["uncertain"] for row in tries):
            last = tries[-1]
            account.lost.append(
                f"{case.name}: {entry.prompt} would have brought files: {last['state']} {last['reason']}"
            )
    for row in case.tries:
        id_ = row["external_id"]
        if ledger.ended.get(id_) == "succeeded" and ledger.files.get(id_) and not case.jumped:
            account.lost.append(f"{case.name}: {id_} was made, is known, and is not kept: {row['state']}")


def _made(case: Case, ledger: Ledger, account: Account) -> None:
    """What was made belongs to a try, one each; what nobody heard of was made by a try that says so."""
    for number, entry in enumerate(case.order.chain):
        tries = [row for row in case.tries if row["entry"] == number and row["key_sha256"]]  # those that were sent
        made = [line for line in case.made if line["prompt"] == entry.prompt]
        keys = Counter(line["key"] for line in made if line["key"])
        account.doubled += [f"{case.name}: {n} predictions were made under one key" for n in keys.values() if n > 1]
        if len(made) > len(tries):
            account.doubled.append(f"{case.name}: {len(made)} predictions were made by {len(tries)} tries")
        for line in made:
            if entry.provider != "openai":
                _by_a_try(case, line, [row for row in tries if _has_key(row, line)], account)
            elif ledger.ended.get(line["prediction"]) == "succeeded" or not any(_is_refused(row) for row in tries):
                _by_a_try(case, line, tries, account)


def _has_key(row: Row, line: Mapping[str, Any]) -> bool:
    """Return whether a try was sent with the key in the webhook address of what was made."""
    return bool(row["key_sha256"] == hashlib.sha256((line["key"] or "").encode()).hexdigest())


def _is_refused(row: Row) -> bool:
    """Return whether a try heard that it failed; OpenAI says so without naming what it began to make."""
    return bool(row["state"] == "failed" and not row["uncertain"])


def _by_a_try(case: Case, line: Mapping[str, Any], by: Sequence[Row], account: Account) -> None:
    name = f"{case.name}: {line['provider']} {line['prediction']}"
    if any(row["external_id"] == line["prediction"] for row in by):
        return
    account.unseen += 1
    if not by:
        account.unexpected.append(f"{name} was made by no try that is known")
    elif line["provider"] == "replicate" and not case.jumped:
        account.unexpected.append(f"{name} was made and never seen, though its provider lists it")
    elif not any(row["uncertain"] and row["external_id"] is None for row in by):
        account.unexpected.append(f"{name} was made and never seen, and its try does not say so")
