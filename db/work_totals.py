"""What pool children of workers have counted, added up; a total is forgotten a month after it changed last."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from db.connection import Connection
from db.statements import statement
from moorage.metrics import Total, name_host

ADD: Final = """
INSERT INTO work_totals AS t (name, labels, value, changed_at)
SELECT *, moment() FROM unnest(%(names)s::text[], %(labels)s::text[], %(values)s::float8[]) d (name, labels, value)
 ORDER BY name, labels
ON CONFLICT (name, labels) DO UPDATE SET value = t.value + excluded.value, changed_at = excluded.changed_at
"""

HOSTS: Final = "SELECT DISTINCT labels::json ->> 'host' AS host FROM work_totals WHERE name LIKE 'moorage_download%'"


def add(conn: Connection, totals: Sequence[Total]) -> None:
    """Add counts to the totals, those of further hosts as one. The order prevents deadlocks between processes."""
    hosts, sums = {row["host"] for row in conn.execute(HOSTS)}, defaultdict[tuple[str, str], float](float)
    for name, labels, value in totals:
        named = {key: name_host(text, hosts) if key == "host" else text for key, text in labels.items()}
        sums[name, json.dumps(named, sort_keys=True)] += value
    args = {"names": [name for name, _ in sums], "labels": [text for _, text in sums], "values": list(sums.values())}
    conn.execute(ADD, args)


# Downloads sooner: the first 30 hosts are named, and those of one day must not keep the names of the next ones.
@statement("""DELETE FROM work_totals WHERE changed_at < moment() - interval '30 days'
    OR starts_with(name, 'moorage_download') AND changed_at < moment() - interval '1 day'""")
def forget_unused(conn: Connection) -> None: ...


READ: Final = "SELECT name, labels, value FROM work_totals ORDER BY name, labels"


def read_totals(conn: Connection) -> list[Total]:
    return [(row["name"], json.loads(row["labels"]), row["value"]) for row in conn.execute(READ).fetchall()]
