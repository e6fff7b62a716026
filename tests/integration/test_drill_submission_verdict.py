"""The drill's verdict on orders must notice what it is for: each damage done by hand is named."""

import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest

from db.connection import Connection, connect
from embedded.stack import Stack
from moorage import ids
from simulation.chaos import submission_load, submission_verdict
from simulation.chaos.submission_load import Order, Ordered
from simulation.chaos.submission_verdict import Account
from tests.integration import kept_world
from tests.integration.core import database_of

NOW = 1_000_000.0


@dataclass
class Drill:
    """Three orders as a clean drill leaves them: one kept at the second entry, one by placeholder, one uncertain."""

    conn: Connection
    ordered: list[Ordered] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    jumps: list[tuple[float, float]] = field(default_factory=list)

    def order(self, name: str, *fails: str | None, placeholder: bool = False, providers: str = "replicate") -> Order:
        drawn = submission_load.draw(random.Random(1), 1, "p", 1).chain[0]
        chain = tuple(
            dataclasses.replace(drawn, provider=providers, prompt=f"{name}, entry {n}", fails=why)
            for n, why in enumerate(fails)
        )
        return Order(name, chain, placeholder, "p", 1, is_repeated=False)

    def job(self, order: Order, state: str, reason: str | None) -> UUID:
        job_id = ids.uuid7()
        self.conn.execute(
            "INSERT INTO jobs (id, owner, kind, fallback_chain, idempotency_key, request_sha256, state, category,"
            " reason, deadline_at) VALUES (%s, 'drill', 'image', '[{}]', %s, 'x', %s, 'PROVIDER_FAILED', %s, moment())",
            (job_id, order.name, state, reason),
        )
        self.ordered.append(Ordered(order, NOW, (str(job_id),)))
        return job_id

    def tried(
        self,
        job_id: UUID,
        entry: int,
        provider: str,
        external_id: str | None,
        reason: str | None,
        *,
        uncertain: bool = False,
    ) -> UUID:
        """Insert a try, submitted with the key `key of {external_id}`."""
        row_id, sha256 = ids.uuid7(), hashlib.sha256(f"key of {external_id}".encode()).hexdigest()
        self.conn.execute(
            "INSERT INTO predictions (id, job_id, seq, entry, provider, external_id, key_sha256, state, reason,"
            " submit_uncertain, submitted_at, deadline_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, 'failed', %s, %s, moment(), moment())",
            (row_id, job_id, entry, entry, provider, external_id, sha256, reason, uncertain),
        )
        return row_id

    def made(
        self, prompt: str, external_id: str | None, status: str, files: int = 0, provider: str = "replicate"
    ) -> None:
        """Write into the ledger what the stand-in made."""
        key = None if provider == "openai" else f"key of {external_id}"
        made = {"kind": "prediction", "prediction": external_id, "provider": provider, "key": key, "prompt": prompt}
        self.lines += [made, {"kind": "ended", "prediction": external_id, "status": status}]
        for n in range(files):
            facts = {"path": f"output[{n}]", "sha256": sha256(external_id, n), "bytes": 10 + n, "expected": "kept"}
            self.lines.append({"kind": "output", "prediction": external_id, **facts})

    def shown(self, job_id: UUID, prediction_id: UUID, name: str, count: int, *, placeholder: bool = False) -> None:
        self.conn.execute("INSERT INTO renders (id, owner, cover_idx) VALUES (%s, 'drill', 0)", (job_id,))
        for n in range(count):
            output_id = ids.uuid7()
            self.conn.execute(
                "INSERT INTO outputs (id, job_id, prediction_id, idx, path, is_placeholder, source_kind, state, sha256,"
                " bytes) VALUES (%s, %s, %s, %s, %s, %s, 'url', 'kept', %s, %s)",
                (output_id, job_id, prediction_id, n, f"output[{n}]", placeholder, sha256(name, n), 10 + n),
            )
            self.conn.execute("INSERT INTO render_variants VALUES (%s, %s, %s)", (job_id, n, output_id))

    def judged(self) -> Account:
        return submission_verdict.judge(self.conn, self.lines, self.ordered, self.jumps)

    def line(self, prediction: str, kind: str) -> dict[str, Any]:
        return next(line for line in self.lines if line["kind"] == kind and line["prediction"] == prediction)


def sha256(name: str | None, number: int) -> str:
    return hashlib.sha256(f"{name} {number}".encode()).hexdigest()


@pytest.fixture(scope="module")
def loose(stack: Stack, template_database: str) -> Iterator[Connection]:
    """Return a connection to a database without rules."""
    made = connect(database_of(stack, template_database, "orders"))
    kept_world.loosen(made)
    made.execute("DROP INDEX jobs_idempotent")
    yield made
    made.close()


@pytest.fixture
def conn(loose: Connection) -> Iterator[Connection]:
    with loose.transaction(force_rollback=True):
        yield loose


@pytest.fixture
def drill(conn: Connection) -> Drill:
    made = Drill(conn)
    first = made.order("order 1", "failed", None)
    job_id = made.job(first, "succeeded", None)
    made.tried(job_id, 0, "replicate", "p0", "out of memory")
    chosen = made.tried(job_id, 1, "replicate", "p1", None)
    made.made("order 1, entry 0", "p0", "failed")
    made.made("order 1, entry 1", "p1", "succeeded", files=2)
    made.shown(job_id, chosen, "p1", 2)

    second = made.order("order 2", "failed", placeholder=True)
    job_id = made.job(second, "partial", "placeholder: out of memory")
    made.tried(job_id, 0, "replicate", "p2", "out of memory")
    stands_in = made.tried(job_id, 1, "placeholder", str(job_id), None)
    made.made("order 2, entry 0", "p2", "failed")
    conn.execute("UPDATE predictions SET entry = NULL, key_sha256 = NULL WHERE id = %s", (stands_in,))
    conn.execute("UPDATE jobs SET chosen_id = %s WHERE id = %s", (stands_in, job_id))
    made.shown(job_id, stands_in, "placeholder", 1, placeholder=True)

    third = made.order("order 3", None, providers="openai")
    job_id = made.job(third, "failed", "submit uncertain: no answer")
    made.tried(job_id, 0, "openai", None, "submit uncertain: no answer", uncertain=True)
    made.made("order 3, entry 0", "p3", "succeeded", files=2, provider="openai")
    return made


def test_a_clean_drill_is_counted(drill: Drill) -> None:
    """The line that the drill prints is made of these."""
    found = drill.judged()

    assert (found.lost, found.doubled, found.unexpected) == ([], [], [])
    assert (found.sent, found.kept, found.placeholders, found.failed) == (3, 1, 1, 1)
    assert (found.tries, found.uncertain, found.made, found.unseen) == (4, 1, 4, 1)
    assert "4 tries, 1 uncertain, 4 made and 1 of them never seen" in str(found)


def lose_a_job(drill: Drill) -> None:
    drill.ordered.append(Ordered(drill.order("order 4", None), NOW, (str(ids.uuid7()),)))


def answer_two_jobs(drill: Drill) -> None:
    one = drill.ordered[0]
    drill.ordered[0] = dataclasses.replace(one, job_ids=(*one.job_ids, str(ids.uuid7())))


def make_a_second_job(drill: Drill) -> None:
    drill.job(drill.ordered[0].order, "failed", "again")
    drill.ordered.pop()


def order_nothing(drill: Drill) -> None:
    drill.ordered.pop()


def leave_it_open(drill: Drill) -> None:
    drill.conn.execute("UPDATE jobs SET state = 'open' WHERE idempotency_key = 'order 3'")


def show_what_was_made_for_another(drill: Drill) -> None:
    drill.line("p1", "prediction")["prompt"] = "order 2, entry 0"


def show_files_of_two(drill: Drill) -> None:
    drill.conn.execute(
        "UPDATE outputs SET prediction_id = (SELECT id FROM predictions WHERE external_id = 'p0')"
        " WHERE path = 'output[1]'"
    )


def show_a_file_twice(drill: Drill) -> None:
    drill.conn.execute("UPDATE outputs SET path = 'output[0]'")


def change_the_bytes(drill: Drill) -> None:
    drill.line("p1", "output")["sha256"] = sha256("other", 0)


def hide_a_file(drill: Drill) -> None:
    drill.conn.execute("DELETE FROM render_variants WHERE idx = 1")


def call_it_partial(drill: Drill) -> None:
    drill.conn.execute("UPDATE jobs SET state = 'partial' WHERE idempotency_key = 'order 1'")


def show_the_placeholder_too(drill: Drill) -> None:
    drill.conn.execute("DROP VIEW variants")
    drill.conn.execute(
        "CREATE VIEW variants AS SELECT v.render_id, v.output_id, o.sha256, o.bytes, o.path = 'output[1]'"
        " AS is_placeholder FROM render_variants v JOIN outputs o ON o.id = v.output_id"
    )


def unmark_the_placeholder(drill: Drill) -> None:
    drill.conn.execute("UPDATE outputs SET is_placeholder = false")


def take_the_placeholder_away(drill: Drill) -> None:
    drill.conn.execute("DELETE FROM render_variants WHERE output_id IN (SELECT id FROM outputs WHERE is_placeholder)")


def hush_up_the_placeholder(drill: Drill) -> None:
    drill.conn.execute("UPDATE jobs SET reason = NULL WHERE idempotency_key = 'order 2'")


def choose_no_placeholder(drill: Drill) -> None:
    drill.conn.execute("UPDATE jobs SET chosen_id = NULL WHERE idempotency_key = 'order 2'")


def ask_for_no_placeholder(drill: Drill) -> None:
    one = drill.ordered[1]
    drill.ordered[1] = dataclasses.replace(one, order=dataclasses.replace(one.order, placeholder=False))


def fail_without_a_reason(drill: Drill) -> None:
    drill.conn.execute("UPDATE jobs SET reason = NULL WHERE idempotency_key = 'order 3'")


def fail_without_a_category(drill: Drill) -> None:
    drill.conn.execute("UPDATE jobs SET category = NULL WHERE idempotency_key = 'order 3'")


def give_up_a_good_entry(drill: Drill) -> None:
    one = drill.ordered[1]
    good = dataclasses.replace(one.order.chain[0], fails=None)
    drill.ordered[1] = dataclasses.replace(one, order=dataclasses.replace(one.order, chain=(good,)))


def skip_an_entry(drill: Drill) -> None:
    one = drill.ordered[1]
    more = dataclasses.replace(one.order.chain[0], prompt="order 2, entry 1")
    drill.ordered[1] = dataclasses.replace(one, order=dataclasses.replace(one.order, chain=(one.order.chain[0], more)))


def leave_files_lying(drill: Drill) -> None:
    drill.line("p2", "ended")["status"] = "succeeded"
    drill.made("order 2, entry 0", "p2", "succeeded", files=1)


def make_it_twice_under_one_key(drill: Drill) -> None:
    drill.made("order 1, entry 0", "p9", "failed")
    drill.line("p9", "prediction")["key"] = "key of p0"


def make_more_than_was_tried(drill: Drill) -> None:
    drill.made("order 3, entry 0", "p9", "succeeded", provider="openai")


def make_it_under_another_key(drill: Drill) -> None:
    drill.line("p0", "prediction")["key"] = "another"


def make_it_without_a_key(drill: Drill) -> None:
    drill.line("p0", "prediction")["key"] = None


def know_it_by_another_try(drill: Drill) -> None:
    first, second = drill.line("p0", "prediction"), drill.line("p1", "prediction")
    first["key"], second["key"] = second["key"], first["key"]


def forget_to_say_that_it_is_uncertain(drill: Drill) -> None:
    drill.conn.execute("UPDATE predictions SET submit_uncertain = false")
    one = drill.ordered[2]
    failing = dataclasses.replace(one.order.chain[0], fails="failed")
    drill.ordered[2] = dataclasses.replace(one, order=dataclasses.replace(one.order, chain=(failing,)))


def miss_what_a_list_shows(drill: Drill) -> None:
    drill.conn.execute("UPDATE predictions SET external_id = NULL WHERE external_id = 'p2'")
    drill.conn.execute("UPDATE predictions SET submit_uncertain = true WHERE external_id IS NULL")


DAMAGES: list[tuple[Callable[[Drill], None], str, str]] = [
    (lose_a_job, "lost", "order 4 was acknowledged and has no job"),
    (leave_it_open, "lost", "has not ended"),
    (hide_a_file, "lost", "does not show p1 output[1]"),
    (give_up_a_good_entry, "lost", "would have brought files"),
    (skip_an_entry, "lost", "never came to order 2, entry 1"),
    (leave_files_lying, "lost", "p2 was made, is known, and is not kept"),
    (answer_two_jobs, "doubled", "order 1 has 2 jobs"),
    (make_a_second_job, "doubled", "order 1 has 2 jobs"),
    (show_files_of_two, "doubled", "shows 2 files of p0, p1"),
    (show_a_file_twice, "doubled", "shows 2 files of p1"),
    (make_it_twice_under_one_key, "doubled", "2 predictions were made under one key"),
    (make_more_than_was_tried, "doubled", "2 predictions were made by 1 tries"),
    (order_nothing, "unexpected", "was never ordered"),
    (show_what_was_made_for_another, "unexpected", "shows files of p1, which was not made for it"),
    (change_the_bytes, "unexpected", "other bytes than were made"),
    (call_it_partial, "unexpected", "has files and says"),
    (show_the_placeholder_too, "unexpected", "shows a placeholder beside its files"),
    (unmark_the_placeholder, "unexpected", "which was not made for it"),
    (take_the_placeholder_away, "unexpected", "shows 0 placeholders"),
    (hush_up_the_placeholder, "unexpected", "shows 1 placeholders and says: "),
    (choose_no_placeholder, "unexpected", "shows 1 placeholders and says: "),
    (ask_for_no_placeholder, "unexpected", "a placeholder that it did not ask for"),
    (fail_without_a_reason, "unexpected", "has no files and says"),
    (fail_without_a_category, "unexpected", "has no files and says"),
    (make_it_under_another_key, "unexpected", "p0 was made by no try that is known"),
    (make_it_without_a_key, "unexpected", "p0 was made by no try that is known"),
    (know_it_by_another_try, "unexpected", "p0 was made by no try that is known"),
    (forget_to_say_that_it_is_uncertain, "unexpected", "its try does not say so"),
    (miss_what_a_list_shows, "unexpected", "though its provider lists it"),
]


@pytest.mark.parametrize(("damage", "where", "said"), DAMAGES, ids=lambda value: getattr(value, "__name__", None))
def test_a_damage_to_an_order_is_named(drill: Drill, damage: Callable[[Drill], None], where: str, said: str) -> None:
    """A drill that cannot fail proves nothing."""
    damage(drill)

    found = getattr(drill.judged(), where)

    assert any(said in line for line in found), found


def test_a_run_that_openai_says_has_failed_was_seen(drill: Drill) -> None:
    """Its answer is a refusal, which names nothing."""
    order = drill.order("order 4", "failed", providers="openai")
    row_id = drill.tried(drill.job(order, "failed", "refused"), 0, "openai", None, "rejected by the safety system")
    drill.made("order 4, entry 0", "p4", "failed", provider="openai")

    heard = drill.judged()
    drill.conn.execute("UPDATE predictions SET state = 'abandoned' WHERE id = %s", (row_id,))
    not_heard = drill.judged()

    assert (heard.unexpected, heard.unseen) == ([], 1)
    assert not_heard.unexpected
    assert not_heard.unseen == 2


@pytest.mark.parametrize(
    ("began", "is_excused"), [(NOW + 100, True), (NOW - 0.5, True), (NOW + 400, False), (NOW - 20, False)]
)
def test_a_jump_of_the_clock_excuses_what_it_fell_into(drill: Drill, began: float, is_excused: bool) -> None:
    """Limits pass in it that had not; what was ordered at another time has no such excuse."""
    give_up_a_good_entry(drill)
    drill.jumps.append((began, began + 2))

    found = drill.judged()

    assert (found.lost == []) is is_excused
