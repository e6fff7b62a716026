"""Errors of TLS certificates, found among the causes of an error of a client library."""

import ssl
from collections.abc import Iterator

from urllib3.util.ssl_match_hostname import CertificateError  # urllib3's own, where it compares host names itself


def find_certificate_error(error: BaseException) -> ssl.SSLCertVerificationError | CertificateError | None:
    """Return the error by which a server's certificate was refused: its issuer, its dates or its host."""
    refusals = (ssl.SSLCertVerificationError, CertificateError)
    return next((cause for cause in iterate_causes(error) if isinstance(cause, refusals)), None)


def iterate_causes(error: BaseException) -> Iterator[BaseException]:
    """Return an error and what it was raised from, or while handling."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
