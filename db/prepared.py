"""The text of prepared statements: how psycopg's placeholders become PostgreSQL's, and how a call keeps its plan."""

import re
import secrets
from typing import Final

# Round each call: by itself PostgreSQL would plan one with an unknown LIMIT each time, as its general plan seems to
# cost more. Not for a whole transaction: the plans of its other statements depend on values, such as absent filters.
BEFORE: Final = "SET LOCAL plan_cache_mode = force_generic_plan"
AFTER: Final = "SET LOCAL plan_cache_mode = auto"
_PLACEHOLDER: Final = re.compile(r"%(?:\((\w+)\)[sb]|%)")


def build_prepare(sql: str) -> tuple[str, str]:
    """Return PREPARE for a statement with named placeholders, and the call with the same ones."""
    names = list(dict.fromkeys(filter(None, _PLACEHOLDER.findall(sql))))
    text = _PLACEHOLDER.sub(lambda match: f"${names.index(match[1]) + 1}" if match[1] else "%", sql)
    name = f"planned_{secrets.token_hex(8)}"  # never one of another client, should a pooler mix sessions
    call = f"EXECUTE {name}({', '.join(f'%({argument})s' for argument in names)})".replace("()", "")
    return f"PREPARE {name} AS {text}", call
