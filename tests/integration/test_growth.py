"""What runs regularly reads as much with a long history as with a short one: plans and rows, no times."""

from collections.abc import Iterator

import pytest

from bench import growth, history
from db.connection import Connection, connect
from embedded.stack import Stack

FILES = 20_000
# Rows that may be read, whatever the history holds: live rows, a page of a list, counts and intervals of a scrape.
# The use of an owner has no limit of its own: it reads live rows and the jobs of two hours, which are about 800 rows.
LIMITS = {"/metrics": 12_000, "moorage status": 2800, "usage, one page": 31_000, "page, choices": 2100}
BOUNDED = [name for name in growth.READS if name not in ("counts of five minutes", "audit, one page of each")]


@pytest.fixture(scope="module")
def conn(stack: Stack, template_database: str) -> Iterator[Connection]:
    with connect(stack.postgres.create_database("growth", template=template_database)) as made:
        history.fill(made, FILES)
        growth.count_all(made)
        made.execute("SET enable_seqscan = off")  # a small table is read whole, whatever its indexes
        yield made


@pytest.mark.parametrize("read", BOUNDED)
def test_a_read_does_not_grow_with_the_history(conn: Connection, read: str) -> None:
    """A list whose filter found nothing took 230 ms with a million files, a scrape a second."""
    cost = growth.explain(conn, growth.READS[read])

    assert cost.whole == []
    assert cost.rows <= LIMITS.get(read, 1200)
