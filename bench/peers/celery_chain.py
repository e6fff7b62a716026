"""
Flask's and Celery's documentation: a view starts a chain of four tasks. Nothing is recorded, verified or tried again.

The files of a chain lie in a folder that all tasks share. The last task counts in Redis, for the bench.
"""

import os
import tempfile
import uuid

import boto3
import redis
import requests
from celery import Celery, chain
from flask import Flask, request
from PIL import Image

app = Flask(__name__)
celery = Celery("celery_chain", broker=os.environ["BENCH_BROKER_URL"])
celery.conf.task_default_queue = "celery_chain"
FOLDER = os.environ.get("BENCH_FOLDER", tempfile.gettempdir())
_clients = {}


@celery.task
def fetch(url):
    path = os.path.join(FOLDER, uuid.uuid4().hex)
    response = requests.get(url, timeout=30)
    response.raise_for_status()
    with open(path, "wb") as file:
        file.write(response.content)
    return path


@celery.task
def check(path):
    with Image.open(path) as image:
        image.load()
    return path


@celery.task
def thumbnail(path):
    with Image.open(path) as image:
        small = image.resize((400, 400), Image.Resampling.LANCZOS, reducing_gap=1.2)
        small.save(f"{path}.webp", "WEBP", quality=80, method=1)
    return path


@celery.task
def store(path):
    if not _clients:  # after the fork
        _clients["s3"] = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"])
        _clients["redis"] = redis.Redis.from_url(os.environ["BENCH_BROKER_URL"])
    name = os.path.basename(path)
    for file, key in ((path, f"peer/{name}"), (f"{path}.webp", f"peer/{name}.webp")):
        with open(file, "rb") as body:
            _clients["s3"].put_object(Bucket=os.environ["S3_PUBLIC_BUCKET"], Key=key, Body=body)
        os.unlink(file)
    _clients["redis"].incr("celery_chain.stored")


@app.post("/webhooks/replicate")
def receive():
    for url in request.get_json()["output"]:
        chain(fetch.s(url), check.s(), thumbnail.s(), store.s()).delay()
    return {"id": uuid.uuid4().hex}, 202


@app.get("/healthz")
def respond():
    return {}
