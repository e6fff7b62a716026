"""The clients of the S3 API know the endpoints of AWS as boto3 does, without those of its other services."""

from types import SimpleNamespace
from typing import Any

import botocore.session
import pytest
from pydantic import SecretStr

from storage import s3_clients


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "cn-north-1", "us-gov-west-1"])
def test_endpoints_are_those_of_botocore(region: str) -> None:
    settings: Any = SimpleNamespace(
        s3_endpoint_url=None,
        s3_public_endpoint_url=None,
        s3_addressing_style="virtual",
        aws_region=region,
        aws_access_key_id="key",
        aws_secret_access_key=SecretStr("secret"),
        aws_session_token=None,
    )
    usual = botocore.session.Session().create_client("s3", region_name=region)
    assert s3_clients.S3Clients(settings).authenticated().meta.endpoint_url == usual.meta.endpoint_url
    partitions = s3_clients._DESCRIPTIONS.load_data("endpoints")["partitions"]
    assert {name for partition in partitions for name in partition["services"]} == set(s3_clients._SERVICES)
