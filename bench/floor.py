"""
The floor of the pipeline: one process that hashes, decodes and stores pictures, with moorage's own thumbnail.

It receives and downloads nothing, and records nothing. Prints the seconds and the CPU seconds of each format as JSON.
"""

import hashlib
import io
import json
import os
import sys
import time

import boto3
from botocore.config import Config
from PIL import Image

from bench import pictures
from media import thumbnails
from media.limits import Limits
from moorage.settings import Settings

VARIANTS = 2


def main(count: int, formats: list[str]) -> None:
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"], config=Config(max_pool_connections=1))
    limits = Limits.from_settings(Settings(_env_file=None))  # type: ignore[call-arg]
    drawn = [pictures.draw(seed) for seed in range(VARIANTS)]
    results = {}
    for format_ in formats:
        files = [pictures.encode(picture, format_) for picture in drawn]
        _store(client, files[0], f"floor/{format_}-warm", limits)
        started, used = time.perf_counter(), time.process_time()
        for number in range(count):
            _store(client, files[number % VARIANTS], f"floor/{format_}-{number}", limits)
        results[format_] = {
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - used,
            "outputs": count,
        }
    print(json.dumps(results))


def _store(client, data: bytes, key: str, limits: Limits) -> None:  # type: ignore[no-untyped-def]
    digest = hashlib.sha256(data).hexdigest()
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        thumbnail = thumbnails.render_thumbnail(image, limits)
    bucket = os.environ["S3_PUBLIC_BUCKET"]
    client.put_object(Bucket=bucket, Key=f"{key}-{digest[:16]}", Body=data)
    client.put_object(Bucket=bucket, Key=f"{key}-{digest[:16]}.thumb", Body=thumbnail.data)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
