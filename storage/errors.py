"""What an S3 error means for the caller: try again, give up, or the object is not there."""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import botocore.exceptions
import urllib3.exceptions
from botocore.exceptions import ClientError

from moorage.errors import Category, MoorageError, ObjectRefused, Permanent, StorageRefused, StorageUnavailable


class ObjectMissing(Permanent):
    """There is no object of that key."""

    category: Category = "STORAGE_FAILED"


_TOO_LARGE: Final = "EntityTooLarge"


# Answers below 500 that another try can cure: the store is busy, a clock or a token will catch up.
_PASSING: Final = frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "RequestTimeout",
     "OperationAborted", "ExpiredToken", "RequestTimeTooSkewed"}
)  # fmt: skip
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
    Raise our own errors for those of the S3 client, naming the operation, bucket and key.

    Raises:
        StorageUnavailable: no connection, a time-out, 5xx, SlowDown.
        ObjectMissing: no such key.
        ObjectRefused: the object is too large for the store.
        StorageRefused: everything else (AccessDenied, NoSuchBucket, BadDigest, no credentials).
    """
    what = f"{operation} of {bucket}/{key}" if key else f"{operation} of bucket {bucket}"
    try:
        yield
    except ClientError as error:
        raise _from_answer(error, what) from error
    except _BROKEN_CONNECTION as error:
        raise StorageUnavailable(f"{what}: {error}", facts={"error": type(error).__name__}) from error
    except botocore.exceptions.BotoCoreError as error:
        raise StorageRefused(f"{what}: {error}", facts={"error": type(error).__name__}) from error


def get_http_status(error: ClientError) -> int:
    """Return the HTTP status of an answer, 0 when it had none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def get_error_code(error: ClientError) -> str:
    """Return the S3 error code of an answer ("NoSuchKey"); the status as text for an answer without a body (HEAD)."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _from_answer(error: ClientError, what: str) -> MoorageError:
    status, code = get_http_status(error), get_error_code(error)
    said = error.response.get("Error", {}).get("Message", "")
    message = f"{what}: {status} {code} {said}".rstrip()
    facts: dict[str, Any] = {"status": status, "code": code}
    if status >= 500 or status == 429 or code in _PASSING:
        return StorageUnavailable(message, facts=facts)
    if code == "NoSuchKey":
        return ObjectMissing(message, facts=facts)
    if code == _TOO_LARGE:
        return ObjectRefused(message, facts=facts)
    return StorageRefused(message, facts=facts)
