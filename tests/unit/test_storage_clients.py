"""The clients of the S3 API know the endpoints of AWS as boto3 does, without those of its other services."""

import botocore.session
import pytest
from botocore.loaders import Loader

from storage import clients


def _presign(loader: Loader, region: str) -> str:
    session = botocore.session.Session()
    session.register_component("data_loader", loader)
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    url: str = session.create_client("s3", region_name=region, **keys).generate_presigned_url(
        "get_object", Params={"Bucket": "bucket", "Key": "key"}
    )
    return url.partition("?")[0]


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "cn-north-1", "us-gov-west-1"])
def test_endpoints_are_those_of_botocore(region: str) -> None:
    assert _presign(clients._DESCRIPTIONS, region) == _presign(Loader(), region)


def test_only_services_that_moorage_uses_are_kept_in_memory() -> None:
    partitions = clients._DESCRIPTIONS.load_data("endpoints")["partitions"]
    assert {name for partition in partitions for name in partition["services"]} <= set(clients._SERVICES)
    assert "s3" in partitions[0]["services"]
