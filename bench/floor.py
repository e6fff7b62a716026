"""
The floor of the pipeline: one process that hashes, decodes and stores pictures, with moorage's own thumbnail.

It receives no webhook and records nothing; with a URL it downloads each file, too. Prints the figures as JSON.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import boto3
import requests
from botocore.config import Config
from PIL import Image

from bench import pictures, results
from bench.deployment import Servers
from media import thumbnails
from media.limits import Limits
from moorage.settings import Settings


def run(servers: Servers, count: int, formats: Sequence[str], url: str = "") -> dict[str, dict[str, Any]]:
    """Run this program; return its figures by format."""
    command = [sys.executable, "-m", "bench.floor", "--count", str(count), "--url", url, "--formats", *formats]
    environment = {"PYTHONPATH": str(results.ROOT), "MOORAGE_DOTENV": "", **servers.stack.environment()}
    done = subprocess.run(command, cwd=results.ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    figures: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--formats", nargs="+", required=True)
    parser.add_argument("--url", default="")
    args = parser.parse_args()
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"], config=Config(max_pool_connections=1))
    limits = Limits.from_settings(Settings(_env_file=None))  # type: ignore[call-arg]
    session = requests.Session()
    figures = {}
    for format_ in args.formats:
        files = pictures.load(format_)
        _store(client, files[0], f"floor/{format_}-warm", limits)
        times, started, used = [], time.perf_counter(), time.process_time()
        for number in range(args.count):
            began = time.perf_counter()
            data = session.get(args.url, timeout=30).content if args.url else files[number % len(files)]
            _store(client, data, f"floor/{format_}-{number}", limits)
            times.append((time.perf_counter() - began) * 1e3)
        figures[format_] = {
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - used,
            "outputs": args.count,
            "times_ms": times,
        }
    print(json.dumps(figures))


def _store(client: Any, data: bytes, key: str, limits: Limits) -> None:
    digest = hashlib.sha256(data).hexdigest()
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        thumbnail = thumbnails.render_thumbnail(image, limits)
    bucket = os.environ["S3_PUBLIC_BUCKET"]
    client.put_object(Bucket=bucket, Key=f"{key}-{digest[:16]}", Body=data)
    client.put_object(Bucket=bucket, Key=f"{key}-{digest[:16]}.thumb", Body=thumbnail.data)


if __name__ == "__main__":
    main()
