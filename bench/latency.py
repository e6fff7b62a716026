"""
Measure the time from a webhook to its published render on an idle stack, beside a floor and a peer.

`make bench PART=latency`. One webhook at a time with one JPEG; a poll of the database each millisecond finds the
render, counted from the moment before the request. The floor is one process that downloads and stores the file.
"""

import argparse
import http.client
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import redis

from bench import deployment, floor, load, pipeline, processes, results
from bench.deployment import Bench, Servers
from db.connection import fetch_all

FORMAT: Final = "jpeg"
PAUSE_SECONDS: Final = 0.2  # between two webhooks: the stack is idle again
POLL_SECONDS: Final = 0.001
WARM_UP: Final = 4  # webhooks that load modules and open connections

PUBLISHED: Final = """
SELECT 1 AS found FROM renders r JOIN predictions p ON p.job_id = r.id WHERE p.external_id = %(id)s
"""


def post_webhook(port: int, body: bytes, secret: str = deployment.SIGNING_SECRET) -> None:
    """Send one signed webhook over a connection of its own. Raises SystemExit if it is not accepted."""
    request = load.sign_request(body, f"msg_{time.time_ns()}", load.decode_secret(secret))
    head, _, content = request.partition(b"\r\n\r\n")
    headers = dict(line.decode().split(": ", 1) for line in head.split(b"\r\n")[1:])
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        conn.request("POST", "/webhooks/replicate", content, headers)
        if (status := conn.getresponse().status) not in (200, 202):
            raise SystemExit(f"the webhook was answered {status}")
    finally:
        conn.close()


def time_until(act: Callable[[], None], is_done: Callable[[], Any]) -> float:
    """Return the milliseconds from an action until a condition is true."""
    started = time.perf_counter()
    act()
    processes.await_true(lambda: bool(is_done()), "the result of a webhook", seconds=60, pause=POLL_SECONDS)
    return (time.perf_counter() - started) * 1e3


def measure_moorage(servers: Servers, count: int) -> list[float]:
    with deployment.start(servers) as bench:
        return measure_bench(bench, count)


def measure_bench(bench: Bench, count: int, *, warm_up: int = WARM_UP) -> list[float]:
    external_ids = bench.create_ids(count + warm_up)
    bench.register(external_ids)
    bench.await_idle()
    times = []
    for external_id, body in zip(external_ids, bench.build_bodies(external_ids, format_=FORMAT), strict=True):
        time.sleep(PAUSE_SECONDS)

        def send(body: bytes = body) -> None:
            post_webhook(bench.local.port, body, bench.secret)

        def is_published(external_id: str = external_id) -> bool:
            return bool(fetch_all(bench.conn, PUBLISHED, {"id": external_id}))

        times.append(time_until(send, is_published))
    return times[warm_up:]


def measure_peer(servers: Servers, count: int) -> list[float]:
    times = []
    url = f"http://127.0.0.1:{servers.files_port}/peer.{FORMAT}"
    body = f'{{"status": "succeeded", "output": ["{url}"]}}'.encode()
    with pipeline.running_peer(servers) as (port, _), redis.Redis.from_url(servers.stack.valkey.url(1)) as broker:
        for _ in range(count + WARM_UP):
            time.sleep(PAUSE_SECONDS)
            broker.delete("celery_chain.stored")
            times.append(time_until(lambda: post_webhook(port, body), lambda: broker.get("celery_chain.stored")))
    return times[WARM_UP:]


def measure_floor(servers: Servers, count: int) -> list[float]:
    return floor.run(servers, count, [FORMAT], url=f"http://127.0.0.1:{servers.files_port}/floor.{FORMAT}")[FORMAT][
        "times_ms"
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--webhooks", type=int, default=25)
    run, args = results.start("latency", parser)
    measures = {pipeline.FLOOR: measure_floor, "moorage": measure_moorage, pipeline.PEER: measure_peer}
    names = pipeline.list_available(measures)
    with deployment.start_servers([FORMAT]) as servers:
        rounds = results.alternate(names, lambda name: measures[name](servers, args.webhooks), rounds=args.rounds)
    times = {name: [value for result in rounds for value in result[name]] for name in names}
    rows = [[name, f"{results.median(values):.0f} ms", f"{max(values):.0f} ms"] for name, values in times.items()]
    run.tables = [results.Table(["from webhook to stored and published", "median", "longest"], rows)]
    run.notes = [f"{len(times['moorage'])} webhooks each, one at a time, in {args.rounds} rounds."]
    run.figures = {"times_ms": times}
    run.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
