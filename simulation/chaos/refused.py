"""The end of a drill: the limit that refused files is raised, and their dead letters are replayed."""

from typing import Any, Final
from uuid import UUID

from db.connection import Connection, fetch_all
from moorage.errors import Refused
from simulation.chaos.load import REFUSED_SIZE
from tasks.jobs import replay
from worker.local_deployment import LocalDeployment

RAISED: Final = {"MOORAGE_IMAGE_MAX_PIXELS": str(REFUSED_SIZE["width_px"] * REFUSED_SIZE["height_px"])}

ABOVE_LIMIT: Final = """
SELECT d.id, p.external_id, o.path
  FROM dead_letters d JOIN outputs o ON o.id = d.subject_id JOIN predictions p ON p.id = o.prediction_id
 WHERE d.subject = 'output' AND d.state = 'open' AND d.facts ? 'pixels' ORDER BY d.id
"""

# A dead letter of a file that was downloaded and refused has its bytes.
LOST: Final = """
SELECT o.id, o.reason FROM outputs o
 WHERE o.state = 'dead' AND o.category = 'VALIDATION_FAILED' AND o.quarantine_key IS NULL AND o.source IS NOT NULL
"""


def replay_refused(conn: Connection, local: LocalDeployment) -> int:
    """Restart the workers of step keep with a higher limit; return the number of replayed dead letters."""
    for name, process in local.processes.items():
        if name.startswith("keep"):
            process.relaunch(**RAISED)
    return sum(_replay(conn, row["id"]) for row in fetch_all(conn, ABOVE_LIMIT))


def _replay(conn: Connection, dead_letter_id: UUID) -> bool:
    try:
        with conn.transaction():
            replay.replay_dead_letter(conn, dead_letter_id, "drill")
    except Refused:
        return False
    return True


def list_refused(conn: Connection) -> set[tuple[str, str]]:
    """Return prediction and path of each file above the limit."""
    return {(row["external_id"], row["path"]) for row in fetch_all(conn, ABOVE_LIMIT)}


def count_served(ledger: dict[str, Any], files: set[tuple[str, str]]) -> int:
    """Return the number of downloads of these files from the provider; a replay adds none."""
    return sum(line["kind"] == "served" and (line["prediction"], line["path"]) in files for line in ledger["lines"])


def list_lost(conn: Connection) -> list[str]:
    return [f"output {row['id']} was refused without its bytes: {row['reason']}" for row in fetch_all(conn, LOST)]
