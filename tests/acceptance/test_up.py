"""`moorage up`: what it prints can be pasted, and leads to a page that shows what was ordered."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import requests

from tests.acceptance.world import until
from worker.local import ROOT

READY = re.compile(r"(http://\S+)/#token=(\S+)")
ORDER = re.compile(r"curl -s (\S+/v1/jobs) -H 'Authorization: Bearer (\S+)'.*?-d '(\{.*?\})'\n", re.DOTALL)


@pytest.fixture
def printed(tmp_path):
    """Run the command in a folder of its own; gives what it printed once it is up, and stops it."""
    out = tmp_path / "out"
    names = ("PATH", "HOME", "TMPDIR", "LANG")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    environment = {**kept, "MOORAGE_DATA_DIR": str(tmp_path / "data"), "PYTHONUNBUFFERED": "1"}
    with out.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.cli", "up"], cwd=ROOT, env=environment, stdout=sink, stderr=subprocess.STDOUT
        )
        try:
            until(lambda: process.poll() is not None or READY.search(out.read_text()), "it is up", seconds=90)
            yield out.read_text()
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    assert process.returncode == 0, out.read_text()
    assert not (tmp_path / "data" / "up.env").exists()


def test_the_order_that_up_prints_is_shown_on_the_page_that_it_prints(printed):
    """The first five minutes: paste one line, look at one address."""
    url, bearer, body = ORDER.search(printed).groups()
    base, token = READY.search(printed).groups()
    headers = {"Authorization": f"Bearer {token}"}

    order = requests.post(url, json=json.loads(body), headers={"Authorization": f"Bearer {bearer}"}, timeout=20)
    assert order.status_code == 202, order.text
    job_url = f"{base}/v1/jobs/{order.json()['job_id']}"
    job = until(lambda: settled(job_url, headers), "the job has ended")

    assert [one["state"] for one in job["predictions"]] == ["failed", "succeeded"]
    with requests.Session() as browser:
        assert browser.post(f"{base}/v1/session", headers=headers, timeout=20).status_code == 204
        page = browser.get(base, timeout=20)
    assert page.status_code == 200
    assert order.json()["job_id"] in page.text


def settled(job_url, headers):
    job = requests.get(job_url, headers=headers, timeout=20).json()
    return job if job["settled_at"] else None
