"""
Functions that are one SQL statement each: their arguments are its parameters, by name.

    @statement("SELECT id FROM jobs WHERE owner = %(owner)s LIMIT %(limit)s")
    def list_ids(conn: Connection, owner: str, limit: int = 100) -> list[UUID]: ...
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from datetime import datetime
from types import UnionType
from typing import Any, Final, TypeVar, cast, get_args, get_origin, get_type_hints
from uuid import UUID

from db.connection import Connection, QueuedQuery, Row
from moorage.errors import LeaseLost
from moorage.model import Lease

F = TypeVar("F", bound=Callable[..., Any])
PLAIN: Final = (str, UUID, int, float, type(None), list, datetime)  # most arguments: no need to look closer


def statement(sql: str | Mapping[Any, str]) -> Callable[[F], F]:
    """
    Make a function execute `sql`, of a mapping the one for its first argument (a lease's table); its body is empty.

    Its return type says what it returns: `list` or `set` all rows, `X | None` or `X` the first one, `bool` whether
    there is one, `QueuedQuery` what is sent with the next statement, `None` nothing. A row is returned as `Row`, as a
    tuple, named tuple or dataclass of its columns, else its first column is. Without a row `X` raises LookupError, and
    `None` with a `Lease` among the arguments raises LeaseLost.

    A named tuple, dataclass or mapping among the arguments gives its fields; a `Lease` gives id, token and actor.
    """

    def decorate(function: F) -> F:
        parameters = list(inspect.signature(function).parameters.values())[1:]
        names = [parameter.name for parameter in parameters]
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        read = _build_reader(get_type_hints(function)["return"], function.__qualname__)

        @functools.wraps(function)
        def run(conn: Connection, *args: Any, **kwargs: Any) -> Any:
            given = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
            values: Row = {"reason": None}  # of an event, unless it is an argument
            for name, argument in given.items():
                values |= {name: argument} if isinstance(argument, PLAIN) else _expand(name, argument)
            lease = given.get("lease")
            texts = wrapped.sql
            text = texts if isinstance(texts, str) else texts[lease.table if lease else given[names[0]]]
            return read(conn, text, values, lease)

        wrapped: Any = run
        wrapped.sql = sql  # a test plans every statement
        return cast(F, wrapped)

    return decorate


def require_row(lease: Lease, row: Row | None) -> Row:
    if row is None:
        raise LeaseLost(f"{lease.table} {lease.row_id}: the lease is lost")
    return row


def _expand(name: str, argument: Any) -> Mapping[str, Any]:
    if isinstance(argument, Lease):
        return {"id": argument.row_id, "token": argument.token, "actor": argument.leased_by}
    if isinstance(argument, Mapping):
        return argument
    if is_dataclass(argument) and not isinstance(argument, type):
        return asdict(argument)
    if isinstance(argument, tuple):
        return argument._asdict() if hasattr(argument, "_asdict") else {name: list(argument)}
    return {name: argument}


def _build_reader(kind: Any, name: str) -> Callable[[Connection, str, Row, Lease | None], Any]:
    if kind is QueuedQuery:
        return lambda conn, sql, values, _: conn.queue(sql, values)
    if kind is type(None):
        return _execute
    if kind is bool:
        return lambda conn, sql, values, _: conn.execute(sql, values).fetchone() is not None
    if get_origin(kind) in (list, set):
        collect, item = get_origin(kind), get_args(kind)[0]
        return lambda conn, sql, values, _: collect(_convert(item, row) for row in conn.execute(sql, values))
    is_optional = isinstance(kind, UnionType)

    def read_first(conn: Connection, sql: str, values: Row, _: Lease | None) -> Any:
        row = conn.execute(sql, values).fetchone()
        if row is not None:
            return _convert(get_args(kind)[0] if is_optional else kind, row)
        if not is_optional:
            raise LookupError(f"{name}: there is no row")
        return None

    return read_first


def _execute(conn: Connection, sql: str, values: Row, lease: Lease | None) -> None:
    cursor = conn.execute(sql, values)
    if lease is not None:
        require_row(lease, cursor.fetchone())


def _convert(kind: Any, row: Row) -> Any:
    if get_origin(kind) in (dict, tuple):
        return row if get_origin(kind) is dict else tuple(row.values())
    return kind(**row) if is_dataclass(kind) or hasattr(kind, "_fields") else next(iter(row.values()))
