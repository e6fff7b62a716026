"""UUIDv7 ids."""

from uuid import RFC_4122

from moorage import ids


def test_an_id_is_a_uuid_of_version_seven():
    """As RFC 9562 lays it out; PostgreSQL and clients read it as one."""
    made = ids.uuid7(0x0123_4567_89AB)

    assert (made.version, made.variant) == (7, RFC_4122)
    assert made.hex.startswith("0123456789ab7")


def test_ids_sort_by_creation_time():
    """An index on them stays dense, a page over them is in order."""
    made = [ids.uuid7(ms) for ms in range(1_000_000, 1_000_050)]

    assert made == sorted(made)


def test_ids_of_one_moment_differ():
    """74 random bits."""
    assert len({ids.uuid7(5) for _ in range(2000)}) == 2000
