"""What pool children of workers have counted, added up; a total is forgotten a month after it changed last."""

import json
from collections.abc import Sequence
from typing import Final

from db.connection import Connection
from db.statements import statement
from moorage.metrics import Total

ADD: Final = """
INSERT INTO work_totals AS t (name, labels, value, changed_at)
SELECT *, moment() FROM unnest(%(names)s::text[], %(labels)s::text[], %(values)s::float8[]) d (name, labels, value)
 ORDER BY name, labels
ON CONFLICT (name, labels) DO UPDATE SET value = t.value + excluded.value, changed_at = excluded.changed_at
"""


def add(conn: Connection, totals: Sequence[Total]) -> None:
    """Add counts to the totals. The order prevents deadlocks between processes."""
    rows = [(name, json.dumps(labels, sort_keys=True), value) for name, labels, value in totals]
    names, labels, values = ([row[column] for row in rows] for column in range(3))
    conn.execute(ADD, {"names": names, "labels": labels, "values": values})


@statement("DELETE FROM work_totals WHERE changed_at < moment() - interval '30 days'")
def forget_unused(conn: Connection) -> None: ...


READ: Final = "SELECT name, labels, value FROM work_totals ORDER BY name, labels"


def read_totals(conn: Connection) -> list[Total]:
    return [(row["name"], json.loads(row["labels"]), row["value"]) for row in conn.execute(READ).fetchall()]
