"""What an application does with an answer of 503: it asks again."""

import time
from collections.abc import Callable

import requests


def patient(ask: Callable[[], requests.Response]) -> requests.Response:
    """Return the first answer that is not "come again in a second": a stalled machine gives a few of those."""
    for _ in range(20):
        answer = ask()
        if answer.status_code != 503 or "Retry-After" not in answer.headers:
            break
        time.sleep(1)
    return answer
