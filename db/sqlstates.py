"""The SQLSTATEs that are about the server or a lock, not about a row. docs/reference/errors.md has the same table."""

import os
from collections.abc import Mapping
from typing import Final

import psycopg

from moorage.errors import DatabaseLocked, DatabaseUnavailable

# A code, or the two characters of its class. What is not listed is an error of moorage: INTERNAL, and counted.
ERROR_TYPES: Final[Mapping[str, type[DatabaseLocked | DatabaseUnavailable]]] = {
    "08": DatabaseUnavailable,  # the connection failed; PgBouncer's own errors
    "0A000": DatabaseUnavailable,  # a migration changed the result of a statement that this connection had prepared
    "25006": DatabaseUnavailable,  # read-only: a standby, or a managed server with a full disk
    "25P03": DatabaseUnavailable,  # idle in a transaction for too long: the process was stopped meanwhile
    "25P04": DatabaseUnavailable,  # the limit of a transaction's time, from PostgreSQL 17 on
    "26000": DatabaseUnavailable,  # a prepared statement is missing: a pooler gave the transaction another session
    "42501": DatabaseUnavailable,  # a missing permission, also on PostgreSQL's own files (EROFS, EACCES)
    "53": DatabaseUnavailable,  # no disk space, memory, connections or temporary files left
    "55P03": DatabaseLocked,
    "57": DatabaseUnavailable,  # shutdown, crash of another session, recovery, a cancelled or too slow statement
    "58": DatabaseUnavailable,  # input and output errors of PostgreSQL's own files
}
REPEATED: Final = ("40001", "40P01")  # serialization failure, deadlock: the transaction is repeated at once


def translate(error: BaseException) -> DatabaseUnavailable | DatabaseLocked | None:
    """Return the error that a psycopg error stands for, None if it is another kind or an error of our own."""
    if not isinstance(error, psycopg.Error):
        return None
    code = error.sqlstate
    if code is None:
        lost = DatabaseUnavailable(f"PostgreSQL connection lost: {first_line(error)}")
        return lost if is_connection_lost(error) else None
    error_type = ERROR_TYPES.get(code) or ERROR_TYPES.get(code[:2])
    return error_type(f"PostgreSQL refused ({code}): {first_line(error)}") if error_type else None


def is_connection_lost(error: BaseException) -> bool:
    """Return True for an error of libpq: those of a server have a code, those of psycopg itself other types."""
    is_libpq = isinstance(error, psycopg.OperationalError) or type(error) is psycopg.DatabaseError
    return isinstance(error, psycopg.Error) and is_libpq and error.sqlstate is None


def explain_no_connection(error: BaseException) -> str:
    """Return why a connection failed; libpq does not say that no file descriptor is free."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as full:
        return str(full)
    return first_line(error)


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
