"""The check of job requests must report every damage."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest

from db.connection import Connection, connect
from embedded.stack import Stack
from moorage import ids
from simulation.cases import Case, CaseRun, Entry
from simulation.job_check import Verdict, check_jobs
from simulation.provider.ledger import LedgerIndex, summarise
from tests.integration import kept_world
from tests.integration.core import database_of

NOW = 1_000_000.0


@dataclass
class Drill:
    """Three job requests after a clean drill: one kept by its second entry, one by placeholder, one uncertain."""

    conn: Connection
    runs: list[CaseRun] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    jumps: list[tuple[float, float]] = field(default_factory=list)

    def case(self, name: str, *failures: str | None, placeholder: bool = False, provider: str = "replicate") -> Case:
        chain = tuple(Entry(provider, failure=failure) for failure in failures)
        return Case(name, chain=chain, placeholder=placeholder, state=None)

    def add_job(self, case: Case, state: str, reason: str | None) -> UUID:
        job_id = ids.uuid7()
        self.conn.execute(
            "INSERT INTO jobs (id, owner, kind, fallback_chain, idempotency_key, request_sha256, state, category,"
            " reason, deadline_at) VALUES (%s, 'drill', 'image', '[{}]', %s, 'x', %s, 'PROVIDER_FAILED', %s, moment())",
            (job_id, case.name, state, reason),
        )
        self.runs.append(CaseRun(case, (str(job_id),)))
        return job_id

    def add_prediction(
        self,
        job_id: UUID,
        entry: int,
        provider: str,
        external_id: str | None,
        reason: str | None,
        *,
        is_uncertain: bool = False,
    ) -> UUID:
        """Insert a prediction, submitted with the key `key of {external_id}`."""
        row_id, sha256 = ids.uuid7(), hashlib.sha256(f"key of {external_id}".encode()).hexdigest()
        self.conn.execute(
            "INSERT INTO predictions (id, job_id, seq, entry, provider, external_id, key_sha256, state, reason,"
            " submit_uncertain, submitted_at, deadline_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, 'failed', %s, %s, moment(), moment())",
            (row_id, job_id, entry, entry, provider, external_id, sha256, reason, is_uncertain),
        )
        return row_id

    def add_created(
        self, prompt: str, external_id: str | None, status: str, files: int = 0, provider: str = "replicate"
    ) -> None:
        """Add lines of a prediction that the stand-in created."""
        key = None if provider == "openai" else f"key of {external_id}"
        created = {"kind": "prediction", "prediction": external_id, "provider": provider, "key": key, "prompt": prompt}
        self.lines += [created, {"kind": "ended", "prediction": external_id, "status": status}]
        for n in range(files):
            facts = {"path": f"output[{n}]", "sha256": sha256(external_id, n), "bytes": 10 + n, "expected": "kept"}
            self.lines.append({"kind": "output", "prediction": external_id, **facts})

    def publish(self, job_id: UUID, prediction_id: UUID, name: str, count: int, *, placeholder: bool = False) -> None:
        self.conn.execute("INSERT INTO renders (id, owner, cover_idx) VALUES (%s, 'drill', 0)", (job_id,))
        for n in range(count):
            output_id = ids.uuid7()
            self.conn.execute(
                "INSERT INTO outputs (id, job_id, prediction_id, idx, path, is_placeholder, source_kind, state, sha256,"
                " bytes) VALUES (%s, %s, %s, %s, %s, %s, 'url', 'kept', %s, %s)",
                (output_id, job_id, prediction_id, n, f"output[{n}]", placeholder, sha256(name, n), 10 + n),
            )
            self.conn.execute("INSERT INTO render_variants VALUES (%s, %s, %s)", (job_id, n, output_id))

    def check(self) -> Verdict:
        index = LedgerIndex.build({"summary": summarise(self.lines), "lines": self.lines})
        verdict = Verdict()
        check_jobs(self.conn, index, self.runs, verdict, self.jumps)
        return verdict

    def line(self, prediction: str, kind: str) -> dict[str, Any]:
        return next(line for line in self.lines if line["kind"] == kind and line["prediction"] == prediction)


def sha256(name: str | None, number: int) -> str:
    return hashlib.sha256(f"{name} {number}".encode()).hexdigest()


@pytest.fixture(scope="module")
def loose(stack: Stack, template_database: str) -> Iterator[Connection]:
    """Return a connection to a database without constraints."""
    conn = connect(database_of(stack, template_database, "job_requests"))
    kept_world.loosen(conn)
    conn.execute("DROP INDEX jobs_idempotent")
    yield conn
    conn.close()


@pytest.fixture
def conn(loose: Connection) -> Iterator[Connection]:
    with loose.transaction(force_rollback=True):
        yield loose


@pytest.fixture
def drill(conn: Connection) -> Drill:
    drill = Drill(conn)
    first = drill.case("request 1", "failed", None)
    job_id = drill.add_job(first, "succeeded", None)
    drill.add_prediction(job_id, 0, "replicate", "p0", "out of memory")
    chosen = drill.add_prediction(job_id, 1, "replicate", "p1", None)
    drill.add_created("request 1, entry 0", "p0", "failed")
    drill.add_created("request 1, entry 1", "p1", "succeeded", files=2)
    drill.publish(job_id, chosen, "p1", 2)

    second = drill.case("request 2", "failed", placeholder=True)
    job_id = drill.add_job(second, "partial", "placeholder: out of memory")
    drill.add_prediction(job_id, 0, "replicate", "p2", "out of memory")
    placeholder = drill.add_prediction(job_id, 1, "placeholder", str(job_id), None)
    drill.add_created("request 2, entry 0", "p2", "failed")
    conn.execute("UPDATE predictions SET entry = NULL, key_sha256 = NULL WHERE id = %s", (placeholder,))
    conn.execute("UPDATE jobs SET chosen_id = %s WHERE id = %s", (placeholder, job_id))
    drill.publish(job_id, placeholder, "placeholder", 1, placeholder=True)

    third = drill.case("request 3", None, provider="openai")
    job_id = drill.add_job(third, "failed", "submit uncertain: no answer")
    drill.add_prediction(job_id, 0, "openai", None, "submit uncertain: no answer", is_uncertain=True)
    drill.add_created("request 3, entry 0", "p3", "succeeded", files=2, provider="openai")
    return drill


def test_a_clean_drill_is_counted(drill: Drill) -> None:
    """The drill prints these counts."""
    verdict = drill.check()
    counts = verdict.job_requests

    assert (verdict.lost, verdict.doubled, verdict.unexpected) == ([], [], [])
    assert (counts.sent, counts.kept, counts.placeholders, counts.failed) == (3, 1, 1, 1)
    assert (counts.predictions, counts.uncertain, counts.created, counts.unseen) == (4, 1, 4, 1)
    assert "4 predictions, 1 uncertain, 4 created and 1 of them never seen" in str(counts)


def change_case(drill: Drill, number: int, **changes: Any) -> None:
    drill.runs[number].case = dataclasses.replace(drill.runs[number].case, **changes)


def lose_a_job(drill: Drill) -> None:
    drill.runs.append(CaseRun(drill.case("request 4", None), (str(ids.uuid7()),)))


def return_two_jobs(drill: Drill) -> None:
    drill.runs[0].job_ids = (*drill.runs[0].job_ids, str(ids.uuid7()))


def create_a_second_job(drill: Drill) -> None:
    drill.add_job(drill.runs[0].case, "failed", "again")
    drill.runs.pop()


def request_nothing(drill: Drill) -> None:
    drill.runs.pop()


def leave_it_open(drill: Drill) -> None:
    drill.conn.execute("UPDATE jobs SET state = 'open' WHERE idempotency_key = 'request 3'")


def show_files_of_another_job(drill: Drill) -> None:
    drill.line("p1", "prediction")["prompt"] = "request 2, entry 0"


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


def change_the_state_to_partial(drill: Drill) -> None:
    drill.conn.execute("UPDATE jobs SET state = 'partial' WHERE idempotency_key = 'request 1'")


def show_the_placeholder_too(drill: Drill) -> None:
    drill.conn.execute("DROP VIEW variants")
    drill.conn.execute(
        "CREATE VIEW variants AS SELECT v.render_id, v.output_id, o.sha256, o.bytes, o.path = 'output[1]'"
        " AS is_placeholder FROM render_variants v JOIN outputs o ON o.id = v.output_id"
    )


def unmark_the_placeholder(drill: Drill) -> None:
    drill.conn.execute("UPDATE outputs SET is_placeholder = false")


def remove_the_placeholder(drill: Drill) -> None:
    drill.conn.execute("DELETE FROM render_variants WHERE output_id IN (SELECT id FROM outputs WHERE is_placeholder)")


def remove_the_reason_of_the_placeholder(drill: Drill) -> None:
    drill.conn.execute("UPDATE jobs SET reason = NULL WHERE idempotency_key = 'request 2'")


def choose_no_placeholder(drill: Drill) -> None:
    drill.conn.execute("UPDATE jobs SET chosen_id = NULL WHERE idempotency_key = 'request 2'")


def request_no_placeholder(drill: Drill) -> None:
    change_case(drill, 1, placeholder=False)


def fail_without_a_reason(drill: Drill) -> None:
    drill.conn.execute("UPDATE jobs SET reason = NULL WHERE idempotency_key = 'request 3'")


def fail_without_a_category(drill: Drill) -> None:
    drill.conn.execute("UPDATE jobs SET category = NULL WHERE idempotency_key = 'request 3'")


def give_up_a_healthy_entry(drill: Drill) -> None:
    change_case(drill, 1, chain=(Entry("replicate"),))


def skip_an_entry(drill: Drill) -> None:
    change_case(drill, 1, chain=drill.runs[1].case.chain * 2)


def leave_files_unused(drill: Drill) -> None:
    drill.line("p2", "ended")["status"] = "succeeded"
    drill.add_created("request 2, entry 0", "p2", "succeeded", files=1)


def create_two_predictions_under_one_key(drill: Drill) -> None:
    drill.add_created("request 1, entry 0", "p9", "failed")
    drill.line("p9", "prediction")["key"] = "key of p0"


def create_more_than_was_submitted(drill: Drill) -> None:
    drill.add_created("request 3, entry 0", "p9", "succeeded", provider="openai")


def create_it_under_another_key(drill: Drill) -> None:
    drill.line("p0", "prediction")["key"] = "another"


def create_it_without_a_key(drill: Drill) -> None:
    drill.line("p0", "prediction")["key"] = None


def exchange_the_keys(drill: Drill) -> None:
    first, second = drill.line("p0", "prediction"), drill.line("p1", "prediction")
    first["key"], second["key"] = second["key"], first["key"]


def forget_that_it_is_uncertain(drill: Drill) -> None:
    drill.conn.execute("UPDATE predictions SET submit_uncertain = false")
    change_case(drill, 2, chain=(Entry("openai", failure="failed"),))


def miss_a_listed_prediction(drill: Drill) -> None:
    drill.conn.execute("UPDATE predictions SET external_id = NULL WHERE external_id = 'p2'")
    drill.conn.execute("UPDATE predictions SET submit_uncertain = true WHERE external_id IS NULL")


DAMAGES: list[tuple[Callable[[Drill], None], str, str]] = [
    (lose_a_job, "lost", "request 4 was acknowledged and has no job"),
    (leave_it_open, "lost", "has not ended"),
    (hide_a_file, "lost", "does not show p1 output[1]"),
    (give_up_a_healthy_entry, "lost", "would have yielded files"),
    (skip_an_entry, "lost", "never reached request 2, entry 1"),
    (leave_files_unused, "lost", "p2 was created, is known, and is not kept"),
    (return_two_jobs, "doubled", "request 1 has 2 jobs"),
    (create_a_second_job, "doubled", "request 1 has 2 jobs"),
    (show_files_of_two, "doubled", "shows 2 files of p0, p1"),
    (show_a_file_twice, "doubled", "shows 2 files of p1"),
    (create_two_predictions_under_one_key, "doubled", "2 predictions were created under one key"),
    (create_more_than_was_submitted, "doubled", "2 predictions were created by 1 submissions"),
    (request_nothing, "unexpected", "was never requested"),
    (show_files_of_another_job, "unexpected", "shows files of p1, which was not created for it"),
    (change_the_bytes, "unexpected", "other bytes than served"),
    (change_the_state_to_partial, "unexpected", "has files and the reason"),
    (show_the_placeholder_too, "unexpected", "shows a placeholder beside its files"),
    (unmark_the_placeholder, "unexpected", "which was not created for it"),
    (remove_the_placeholder, "unexpected", "shows 0 placeholders"),
    (remove_the_reason_of_the_placeholder, "unexpected", "shows 1 placeholders and the reason: "),
    (choose_no_placeholder, "unexpected", "shows 1 placeholders and the reason: "),
    (request_no_placeholder, "unexpected", "a placeholder that it did not request"),
    (fail_without_a_reason, "unexpected", "has no files and the reason"),
    (fail_without_a_category, "unexpected", "has no files and the reason"),
    (create_it_under_another_key, "unexpected", "p0 was created by no known submission"),
    (create_it_without_a_key, "unexpected", "p0 was created by no known submission"),
    (exchange_the_keys, "unexpected", "p0 was created by no known submission"),
    (forget_that_it_is_uncertain, "unexpected", "its submission is not uncertain"),
    (miss_a_listed_prediction, "unexpected", "although its provider lists it"),
]


@pytest.mark.parametrize(("damage", "kind", "message"), DAMAGES, ids=lambda value: getattr(value, "__name__", None))
def test_a_damaged_job_request_is_reported(
    drill: Drill, damage: Callable[[Drill], None], kind: str, message: str
) -> None:
    """A drill that cannot fail proves nothing."""
    damage(drill)

    findings = getattr(drill.check(), kind)

    assert any(message in line for line in findings), findings


def test_a_failure_that_openai_reported_counts_as_seen(drill: Drill) -> None:
    """Its response is an error, which has no id."""
    case = drill.case("request 4", "failed", provider="openai")
    row_id = drill.add_prediction(
        drill.add_job(case, "failed", "refused"), 0, "openai", None, "rejected by the safety system"
    )
    drill.add_created("request 4, entry 0", "p4", "failed", provider="openai")

    received = drill.check()
    drill.conn.execute("UPDATE predictions SET state = 'abandoned' WHERE id = %s", (row_id,))
    not_received = drill.check()

    assert (received.unexpected, received.job_requests.unseen) == ([], 1)
    assert not_received.unexpected
    assert not_received.job_requests.unseen == 2


EVENT_OF_THE_HEALTHY_ENTRY = """
INSERT INTO events (subject, subject_id, from_state, to_state, actor, at)
SELECT 'prediction', id, 'running', 'abandoned', 'node/task', to_timestamp(%s) FROM predictions WHERE external_id = 'p2'
"""


@pytest.mark.parametrize(
    ("recorded", "is_explained"),
    [(3600 + 1, True), (-3600 + 1, True), (1, False), (3600 + 60, False), (-3600 - 60, False)],
)
def test_a_clock_jump_explains_only_time_limits_that_were_recorded_in_it(
    drill: Drill, recorded: float, is_explained: bool
) -> None:
    """A prediction that was abandoned by the right clock, although its job was requested before a jump, is lost."""
    give_up_a_healthy_entry(drill)
    drill.jumps.append((NOW, NOW + 2))
    drill.conn.execute(EVENT_OF_THE_HEALTHY_ENTRY, [NOW + recorded])

    assert (drill.check().lost == []) is is_explained
