"""URLs of kept files; pure, and light to import."""

from urllib.parse import quote, urlsplit, urlunsplit

from moorage.settings import Settings


def get_asset_base_url(settings: Settings) -> str:
    """Return the URL before a key: ASSET_BASE_URL, else that of the API or, with `redirect`, of the public bucket."""
    if settings.asset_base_url:
        return settings.asset_base_url
    return get_bucket_url(settings) if settings.assets == "redirect" else f"{settings.public_url}/v1/assets"


def get_bucket_url(settings: Settings) -> str:
    """Return the URL of the bucket of kept files as readers reach it, built as boto3 does."""
    endpoint, bucket = settings.s3_public_endpoint_url or settings.s3_endpoint_url, settings.s3_public_bucket
    parts = urlsplit(endpoint or f"https://s3.{settings.aws_region}.amazonaws.com")
    if settings.s3_addressing_style == "path" or (endpoint and settings.s3_addressing_style == "auto"):
        return f"{urlunsplit(parts)}/{bucket}"
    return urlunsplit(parts._replace(netloc=f"{bucket}.{parts.netloc}"))


def build_asset_url(base: str, key: str) -> str:
    return f"{base}/{quote(key)}"
