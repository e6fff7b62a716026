"""Log lines: one a record, whole, and without what must not be told."""

import io
import json
import logging

import pytest

from moorage import logs
from moorage.errors import ConfigError


def line(formatter, fields, message="thing.happened"):
    record = logging.LogRecord("tasks.outputs.keep", logging.INFO, __file__, 1, message, (), None)
    record.fields = fields
    return formatter.format(record)


def test_json_keeps_its_own_keys():
    """A field called `at` once stood in the place of the line's time."""
    read = json.loads(line(logs.JsonFormatter(), {"at": "tomorrow", "level": 3, "bytes": 5}))

    assert read["event"] == "thing.happened"
    assert read["level"] == "info"
    assert read["at"].startswith("20")
    assert (read["at_"], read["level_"], read["bytes"]) == ("tomorrow", 3, 5)


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\x1b[2Jb", "a\u2028b", 'a"b', "a b=c"])
@pytest.mark.parametrize("formatter", [logs.JsonFormatter(), logs.ConsoleFormatter()])
def test_a_value_cannot_break_its_line(formatter, value):
    """Values come from outside; a forged line or a terminal code must not."""
    text = line(formatter, {"reason": value})

    assert text.isprintable()
    assert len(text.splitlines()) == 1


def test_what_is_logged_before_logging_is_configured_has_its_fields():
    """`boot.waiting` alone says neither what for nor why."""
    record = logging.LogRecord("worker.boot", logging.WARNING, __file__, 1, "boot.waiting", (), None)
    record.fields = {"waiting_for": "storage", "error": "no route"}

    assert logging.lastResort is not None
    assert logging.lastResort.format(record).endswith('warn boot.waiting waiting_for=storage error="no route"')


def test_another_level_is_refused_in_one_line():
    """It was a traceback of the logging library."""
    with pytest.raises(ConfigError, match="LOG_LEVEL='loud': write one of DEBUG, INFO, WARNING, ERROR"):
        logs.configure_logging("loud")


def test_bound_fields_stand_in_every_line_inside():
    """Also in those of libraries."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter())
    log = logging.getLogger("some.library")
    log.addHandler(handler)
    try:
        with logs.bind_fields(step="keep"), logs.bind_fields(row_id="7"):
            log.warning("hello %s", "world")
        log.warning("outside")
    finally:
        log.removeHandler(handler)

    inside, outside = (json.loads(text) for text in stream.getvalue().splitlines())
    assert (inside["event"], inside["step"], inside["row_id"]) == ("hello world", "keep", "7")
    assert "step" not in outside


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:p@files.example:8443/a/b.png?X-Sig=secret#f", "https://files.example:8443/a/b.png"),
        ("http://[::1]:80/x?y", "http://[::1]:80/x"),
        ("data:image/png;base64,AAAA", "data:..."),
        ("http://[::1", "(unreadable URL)"),
        ("http://host:99999/", "(unreadable URL)"),
    ],
)
def test_a_url_is_shown_without_what_is_secret(url, shown):
    """Signatures, passwords and bodies stay out of logs."""
    assert logs.redact_url(url) == shown


@pytest.mark.parametrize(
    ("sent", "is_bound"),
    [
        ([b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"], True),
        ([b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"] * 2, False),
        ([b"00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"], False),
        ([b"x\n{}"], False),
        ([], False),
    ],
)
def test_a_trace_is_bound_if_it_is_one(sent: list[bytes], *, is_bound: bool) -> None:
    """Whatever else is sent in its place is not written into the log."""
    headers = [(b"host", b"a"), *((b"traceparent", value) for value in sent)]

    assert logs.read_traceparent(headers) == ({"traceparent": sent[0].decode()} if is_bound else {})
