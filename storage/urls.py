"""Public URLs of objects in the public bucket; pure, and light to import."""

from urllib.parse import quote, urlsplit, urlunsplit

from moorage.settings import Settings


def get_asset_base_url(settings: Settings) -> str:
    """Return the URL before a key: ASSET_BASE_URL, else that of the public bucket, built as boto3 does."""
    if settings.asset_base_url:
        return settings.asset_base_url
    endpoint, bucket = settings.s3_public_endpoint_url or settings.s3_endpoint_url, settings.s3_public_bucket
    parts = urlsplit(endpoint or f"https://s3.{settings.aws_region}.amazonaws.com")
    if settings.s3_addressing_style == "path" or (endpoint and settings.s3_addressing_style == "auto"):
        return f"{urlunsplit(parts)}/{bucket}"
    return urlunsplit(parts._replace(netloc=f"{bucket}.{parts.netloc}"))


def build_asset_url(base: str, key: str) -> str:
    return f"{base}/{quote(key)}"
