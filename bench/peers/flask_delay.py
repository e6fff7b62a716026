"""Flask's documentation of Celery: a view calls `delay()`. Keeps nothing itself: a lost broker loses the webhook."""

import os

from celery import Celery
from flask import Flask, request

app = Flask(__name__)
celery = Celery("flask_delay", broker=os.environ["BENCH_BROKER_URL"])
celery.conf.task_default_queue = "flask_delay"


@celery.task
def handle(payload):
    """Never run here: the bench measures accepting."""


@app.post("/webhooks/replicate")
def receive():
    return {"id": handle.delay(request.get_json()).id}, 202
