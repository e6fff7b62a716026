"""The broker's URL with its parameters, and what an error of the broker means to an operator."""

import json
import ssl
from pathlib import Path

import pytest
import redis.exceptions
from kombu.exceptions import OperationalError
from redis._parsers.base import BaseParser

from moorage.broker_urls import parse_broker_url
from worker import broker_errors, broker_transports

ROOT = Path(__file__).resolve().parents[2]
SENTINELS = "sentinel://u:p@a:1/2;sentinel://b:2?master_name=m&sentinel_password=s"


def test_sentinels_share_the_account_and_the_database_of_the_primary():
    """kombu takes both from the URL in turn: the second sentinel would connect without a password."""
    spec = parse_broker_url(SENTINELS)

    assert spec.url == "sentinel://u:p@a:1/2;sentinel://u:p@b:2/2"
    options = broker_transports.build_options(spec)
    assert (options["master_name"], options["sentinel_kwargs"]["password"]) == ("m", "s")


def test_certificates_are_always_verified():
    """kombu verifies none if no option says so."""
    plain, own = (parse_broker_url(f"rediss://a:1/0{query}") for query in ("", "?ssl_ca_certs=/ca.pem"))

    assert plain.ssl == {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    assert own.ssl == {**plain.ssl, "ssl_ca_certs": "/ca.pem"}
    assert parse_broker_url("redis://a:1/0").ssl is None
    spec = parse_broker_url("amqps://u:p@a:1//?ssl_ca_certs=/ca.pem")
    assert (spec.url, spec.ssl) == (
        "amqps://u:p@a:1//", {"cert_reqs": ssl.CERT_REQUIRED, "ca_certs": "/ca.pem"}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://a", "write redis://"),
        ("a:6379", "write redis://"),
        ("redis://a;amqp://b", "one scheme"),
        ("sentinel://a:26379/0", "master_name"),
        ("redis://a?ssl_ca_certs=/ca.pem", "rediss://"),
        ("amqps://a?ssl_cert_reqs=none", "ssl_cert_reqs: the broker's certificate is always verified"),
        ("rediss://a?ssl_cert_reqs=CERT_NONE", "for an issuer of your own"),
        ("redis://:secret@a?socket_timeout=5", "socket_timeout is no parameter"),
    ],
)
def test_a_url_that_cannot_work_is_refused(url, says):
    """Each of these was accepted, and ended in a traceback or in no connection at all."""
    with pytest.raises(ValueError, match=says) as refused:
        parse_broker_url(url)

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("prefix", broker_errors.REPLIES)
def test_each_refusal_is_an_outage_with_its_advice(prefix):
    """Also those that need a cluster, which no test runs; wrapped as kombu and a pipeline wrap them."""
    error = BaseParser.parse_error(f"{prefix} 1 127.0.0.1:7000" if prefix == "MOVED" else f"{prefix} said the server")
    with pytest.raises(OperationalError) as wrapped:
        raise OperationalError(str(error)) from error

    assert isinstance(error, broker_transports.RedisTransport.connection_errors)
    assert isinstance(error, broker_transports.SentinelTransport.connection_errors)
    assert broker_errors.find_reply(wrapped.value) == prefix
    assert broker_errors.explain(wrapped.value).what.startswith(f"the broker refuses ({prefix})")


def test_the_reason_of_an_aborted_transaction_is_its_reply():
    """EXEC answers EXECABORT and quotes the first reply."""
    error = BaseParser.parse_error("EXECABORT Transaction discarded because of: OOM command not allowed")

    assert broker_errors.find_reply(error) == "OOM"


def test_a_reply_that_the_table_does_not_name_is_quoted():
    """A managed server may forbid commands; an operator needs its words, a worker waits as for any other refusal."""
    error = BaseParser.parse_error("ERR unknown command 'EVALSHA'")

    assert broker_errors.explain(error).what == "the broker refuses: unknown command 'EVALSHA'"
    assert broker_errors.explain(OSError("no route")) == broker_errors.NO_ANSWER


def test_a_certificate_names_the_setting():
    """redis-py raises its own error while it handles that of the certificate."""
    refused = ssl.SSLCertVerificationError(1, "certificate verify failed")
    refused.verify_message = "self-signed certificate"
    error = redis.exceptions.ConnectionError("no connection")
    error.__context__ = refused

    found = broker_errors.explain(error)

    assert "self-signed certificate" in found.what
    assert "CELERY_BROKER_URL" in found.advice


def test_the_page_of_error_classes_lists_every_reply():
    """An operator looks the reply up there."""
    page = (ROOT / "docs/reference/errors.md").read_text(encoding="utf-8")

    for reply, finding in broker_errors.REPLIES.items():
        assert f"| `{reply}` | {finding.what} | {finding.advice} |" in page.replace(
            "`CELERY_BROKER_URL`", "CELERY_BROKER_URL"
        )


def test_an_entry_that_is_no_message_is_wrapped_in_one():
    """The wrapping must be a message itself, or it would be wrapped for ever."""
    wrapped = broker_transports.wrap_entry(b"\xff" * 10_000, "keep")

    assert broker_transports.is_message(wrapped)
    assert len(json.loads(wrapped)["body"]) < 6000
