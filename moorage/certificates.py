"""The causes of an error of a client library, which wraps them; errors of TLS certificates among them."""

import ssl
import sys
from collections.abc import Iterator

_OF_URLLIB3 = "urllib3.util.ssl_match_hostname"  # which compares host names itself; it is not loaded by beat and Flower


def find_certificate_error(error: BaseException) -> Exception | None:
    """Return the error by which a server's certificate was refused: its issuer, its dates or its host."""
    causes = (cause for cause in iterate_causes(error) if isinstance(cause, Exception))
    return next((cause for cause in causes if isinstance(cause, ssl.SSLCertVerificationError | _name_error())), None)


def _name_error() -> type[Exception]:
    module = sys.modules.get(_OF_URLLIB3)
    error: type[Exception] = module.CertificateError if module else ssl.SSLCertVerificationError
    return error


def iterate_causes(error: BaseException) -> Iterator[BaseException]:
    """Return an error and what it was raised from, or while handling."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def describe_cause(error: BaseException) -> str:
    """
    Describe the innermost cause: libraries wrap it without adding information, but with the path and query of the URL.

    Only errors of the operating system and of TLS are described by their text: others may quote the URL.
    """
    *_, innermost = iterate_causes(error)
    name = type(innermost).__name__
    return f"{name}: {innermost}"[:300] if isinstance(innermost, OSError | _name_error()) else name
