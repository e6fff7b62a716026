"""The verdict of a drill: everything that was sent is accounted for, and a fault explains every repeated attempt."""

from collections.abc import Sequence
from typing import Any

from db.connection import Connection, Row, fetch_all
from simulation.cases import CaseRun
from simulation.chaos import retry_verdict
from simulation.chaos.schedule import LandedFault
from simulation.job_check import Verdict
from simulation.ledger_check import check_ledger
from storage.s3 import ObjectStore


def judge_drill(
    conn: Connection, blobs: ObjectStore, ledger: dict[str, Any], runs: Sequence[CaseRun], landed: Sequence[LandedFault]
) -> Verdict:
    jumps = [(fault.began_at, fault.ended_at) for fault in landed if fault.kind == "clock jump"]
    verdict = check_ledger(conn, blobs, ledger, runs, jumps)
    lines = [line for expected in ("kept", "dead") for line in ledger["summary"]["expected"][expected]]
    outputs = {(line["prediction"], line["path"]) for line in lines if line["fault"]}
    entries = [(run.case.prompt(n), entry) for run in runs for n, entry in enumerate(run.case.chain)]
    prompts = {prompt for prompt, entry in entries if entry.is_troubled}

    def is_troubled(row: Row) -> bool:
        """Return True if the repeated row has a fault of the provider by its script."""
        return (row["external_id"], row["path"]) in outputs or row["prompt"] in prompts

    repeated = fetch_all(conn, retry_verdict.REPEATED)
    verdict.repeated = len(repeated)
    verdict.unexplained += retry_verdict.find_unexplained(repeated, landed, is_troubled)
    return verdict
