"""Log lines with a constant event name and fields, as JSON or for a console, over the standard library's handlers."""

import contextlib
import contextvars
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import partialmethod
from typing import Any, Final
from urllib.parse import urlsplit

from moorage.errors import ConfigError

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
_bound: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("moorage_log_fields", default=None)


class Logger:
    """
    A standard logger whose methods take an event name and keyword fields: `log.info("output.kept", bytes=3)`.

    `info`: a state change; `warning`: a failure that will be retried; `error`: an operator must act.
    """

    def __init__(self, name: str) -> None:
        self._log = logging.getLogger(name)

    def _emit(self, level: int, event: str, *, exc_info: bool = False, **fields: Any) -> None:
        if self._log.isEnabledFor(level):
            self._log.log(level, event, extra={"fields": {**(_bound.get() or {}), **fields}}, exc_info=exc_info)

    debug = partialmethod(_emit, logging.DEBUG)
    info = partialmethod(_emit, logging.INFO)
    warning = partialmethod(_emit, logging.WARNING)
    error = partialmethod(_emit, logging.ERROR)


def get_logger(name: str) -> Logger:
    return Logger(name)


@contextlib.contextmanager
def bind_fields(**fields: Any) -> Iterator[None]:
    """Add the fields to every line logged inside the block, including those of libraries."""
    token = _bound.set({**(_bound.get() or {}), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def get_bound_field(name: str) -> Any:
    return (_bound.get() or {}).get(name)


_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def read_traceparent(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the trace of a request as a field to bind; no field if it names none, several or an invalid one."""
    sent = [value.decode("latin-1") for name, value in headers if name == b"traceparent"]
    return {"traceparent": sent[0]} if len(sent) == 1 and _TRACEPARENT.fullmatch(sent[0]) else {}


def redact_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(unreadable URL)"
    if not host:
        return f"{parts.scheme}:..."  # a data: URI has no host
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path}"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: at, level, logger, event, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {f"{key}_" if key in line else key: value for key, value in _fields(record).items()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=True)


class ConsoleFormatter(logging.Formatter):
    """One readable line: time, level, event, key=value."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        fields = " ".join(f"{key}={_short(value)}" for key, value in _fields(record).items())
        line = f"{time} {record.levelname[:4].lower()} {record.getMessage()} {fields}".rstrip()
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


if logging.lastResort is not None:  # prints what is logged before `configure_logging`, by default without the fields
    logging.lastResort.setFormatter(ConsoleFormatter())


def configure_logging(level: str = "INFO", style: str = "console") -> None:
    """Send the lines of all loggers to standard error as "json" or "console". Raises ConfigError for another level."""
    if level.upper() not in LEVELS:
        raise ConfigError(f"LOG_LEVEL={level!r}: write one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style.lower() == "json" else ConsoleFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # At INFO these libraries repeat our own lines, every second or for every message.
    for noisy in ("amqp", "asyncio", "boto3", "botocore", "celery", "kombu", "tornado", "urllib3"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else dict(_bound.get() or {})


def _short(value: Any) -> str:
    text = str(value)
    return text if text.isprintable() and not any(c in text for c in ' "=') else json.dumps(text)
