"""What a response of the store, or of a proxy before it, is about: the object, the store, or the request."""

import pytest
from botocore.exceptions import ClientError

from moorage.errors import ObjectRefused
from storage.errors import translate_errors


@pytest.mark.parametrize("code", ["EntityTooLarge", "413", ""])
def test_an_object_that_is_too_large_is_refused_for_good(code):
    """A proxy names no code of S3; the same object would be sent and refused for ever, and its job would not end."""
    response = {"Error": {"Code": code, "Message": "x"}, "ResponseMetadata": {"HTTPStatusCode": 413}}

    with pytest.raises(ObjectRefused), translate_errors("put", "bucket", "key"):
        raise ClientError(response, "PutObject")
