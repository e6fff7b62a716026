"""The causes of an error of a client library, which wraps them; errors of TLS certificates among them."""

import ssl
from collections.abc import Iterator


def find_certificate_error(error: BaseException) -> BaseException | None:
    """Return the error by which a server's certificate was refused: its issuer, its dates or its host."""
    return next((cause for cause in iterate_causes(error) if _is_of_certificate(cause)), None)


def _is_of_certificate(error: BaseException) -> bool:  # urllib3's own by name: beat and Flower do not load it
    return isinstance(error, ssl.SSLCertVerificationError) or type(error).__name__ == "CertificateError"


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
    return f"{name}: {innermost}"[:300] if isinstance(innermost, OSError) or _is_of_certificate(innermost) else name
