"""Public URLs of objects in the public bucket; pure, and light to import."""

from urllib.parse import quote, urlsplit, urlunsplit

from moorage.settings import Settings


def get_asset_base_url(settings: Settings) -> str:
    """Return the URL before a key: ASSET_BASE_URL, else the public bucket at the public endpoint."""
    return settings.asset_base_url or _build_bucket_url(settings)


def build_asset_url(base: str, key: str) -> str:
    return f"{base}/{quote(key)}"


def _build_bucket_url(settings: Settings) -> str:
    """Return the URL of the public bucket, built like boto3's: path style unless the store is AWS."""
    endpoint, bucket = settings.s3_public_endpoint_url or settings.s3_endpoint_url, settings.s3_public_bucket
    host = f"s3.{settings.aws_region}.amazonaws.com"
    in_path = settings.s3_addressing_style == "path" or (endpoint and settings.s3_addressing_style == "auto")
    parts = urlsplit(endpoint or f"https://{host}")
    if in_path:
        return f"{urlunsplit(parts)}/{bucket}"
    return urlunsplit(parts._replace(netloc=f"{bucket}.{parts.netloc}"))
