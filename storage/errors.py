"""Conversion of S3 errors to error types of moorage."""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import botocore.exceptions
import urllib3.exceptions
from botocore.exceptions import ClientError

from moorage.certificates import find_certificate_error
from moorage.errors import Category, MoorageError, ObjectRefused, Permanent, StorageRefused, StorageUnavailable


class ObjectMissing(Permanent):
    """No object has this key."""

    category: Category = "STORAGE_FAILED"


class CertificateRefused(StorageUnavailable):
    """The store's certificate is not that of its host, or its issuer is unknown."""


# Retryable codes below 500: the store is busy, or a clock or token will be corrected.
_RETRYABLE: Final = frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "RequestTimeout",
     "OperationAborted", "ExpiredToken", "RequestTimeTooSkewed"}
)  # fmt: skip
# Codes of a 403 that is no missing permission.
WRONG_KEYS: Final = _RETRYABLE | {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "AuthorizationHeaderMalformed",
}
_BROKEN_CONNECTION: Final = (
    botocore.exceptions.ConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.CredentialRetrievalError,
    urllib3.exceptions.HTTPError,
    OSError,
)


@contextlib.contextmanager
def translate_errors(operation: str, bucket: str, key: str = "") -> Iterator[None]:
    """
    Convert errors of the S3 client; messages name the operation, bucket and key.

    Raises:
        StorageUnavailable: no connection, timeout, 5xx but 501, SlowDown; its subclass CertificateRefused.
        ObjectMissing, ObjectRefused: no such key; the object is too large.
        StorageRefused: anything else (AccessDenied, NoSuchBucket, BadDigest, NotImplemented, no credentials), and a
            response without a field that the block reads.
    """
    request = f"{operation} of {bucket}/{key}" if key else f"{operation} of bucket {bucket}"
    try:
        yield
    except ClientError as error:
        raise _from_response(error, request) from error
    except _BROKEN_CONNECTION as error:
        if find_certificate_error(error) is None:
            raise StorageUnavailable(f"{request}: {error}", facts={"error": type(error).__name__}) from error
        advice = (
            "correct AWS_ENDPOINT_URL_S3: its host name, or set AWS_CA_BUNDLE to a file with its issuer's certificates"
        )
        raise CertificateRefused(f"{request}: the store's certificate is refused: {advice}: {error}") from error
    except KeyError as error:
        raise StorageRefused(f"{request}: the response has no {error.args[0]}: is a proxy in between?") from error
    except botocore.exceptions.BotoCoreError as error:
        raise StorageRefused(f"{request}: {error}", facts={"error": type(error).__name__}) from error


def get_http_status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_unsupported(error: ClientError) -> bool:
    """Return whether the store refuses the request itself, and not its sender (403), place (404) or time."""
    return get_http_status(error) in {400, 405, 501} and get_error_code(error) not in _RETRYABLE


def get_error_code(error: ClientError) -> str:
    """Return the S3 error code ("NoSuchKey"); the status as text for a response without a body (HEAD)."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _from_response(error: ClientError, request: str) -> MoorageError:
    status, code = get_http_status(error), get_error_code(error)
    detail = error.response.get("Error", {}).get("Message", "")
    if error.operation_name.startswith(("AssumeRole", "GetRoleCredentials")):  # the store was not reached
        request += f", for which {error.operation_name} was sent"
    message = f"{request}: {status} {code} {detail}".rstrip()
    facts: dict[str, Any] = {"status": status, "code": code, "operation": error.operation_name}
    if (status >= 500 and status != 501) or status == 429 or code in _RETRYABLE:
        return StorageUnavailable(message, facts=facts)
    if code == "NoSuchKey":
        return ObjectMissing(message, facts=facts)
    if code == "EntityTooLarge" or status == 413:  # a proxy before the store sends no code
        return ObjectRefused(message, facts=facts)
    return StorageRefused(message, facts=facts)
