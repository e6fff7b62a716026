"""`moorage up`: what it prints can be pasted, and leads to a page that shows what was ordered."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import requests

from tests.acceptance.world import until
from tests.support import fork_server
from worker.local_deployment import ROOT

READY = re.compile(r"(http://\S+)/#token=(\S+)")
ORDER = re.compile(r"curl -s (\S+/v1/jobs) -H 'Authorization: Bearer (\S+)'.*?-d '(\{.*?\})'\n", re.DOTALL)
STARTED_BY_HAND = re.compile(r"^ *ID=\$\(curl.*?(?=^ *#)", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Return the environment of a terminal in which `up` keeps its data in a folder of its own."""
    names = ("PATH", "HOME", "TMPDIR", "LANG")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    data = tmp_path_factory.mktemp("up") / "data"
    return {**kept, "MOORAGE_DATA_DIR": str(data), "MOORAGE_DOTENV": "", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def printed(environment, tmp_path_factory):
    """Run the command; gives what it printed once it is up, and stops it after the last test."""
    out = tmp_path_factory.mktemp("printed") / "out"
    with out.open("wb") as sink:
        command = ["-m", "tests.support.forking_command", "up"]
        process = fork_server.popen(command, cwd=ROOT, env=environment, stdout=sink, stderr=sink)
        try:
            until(lambda: process.poll() is not None or READY.search(out.read_text()), "it is up", seconds=180)
            yield out.read_text()
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)
    assert process.returncode == 0, out.read_text()
    assert not Path(environment["MOORAGE_DATA_DIR"], "up.env").exists()


def test_the_order_that_up_prints_is_shown_on_the_page_that_it_prints(printed):
    """The first five minutes: paste one line, look at one address."""
    url, bearer, body = ORDER.search(printed).groups()
    base, token = READY.search(printed).groups()
    headers = {"Authorization": f"Bearer {token}"}

    order = requests.post(url, json=json.loads(body), headers={"Authorization": f"Bearer {bearer}"}, timeout=60)
    assert order.status_code == 202, order.text
    job_url = f"{base}/v1/jobs/{order.json()['job_id']}"
    job = until(lambda: settled(job_url, headers), "the job has ended")

    assert [one["state"] for one in job["predictions"]] == ["failed", "succeeded"]
    with requests.Session() as browser:
        assert browser.post(f"{base}/v1/session", headers=headers, timeout=60).status_code == 204
        page = browser.get(base, timeout=60)
    assert page.status_code == 200
    assert order.json()["job_id"] in page.text


def test_the_lines_for_a_prediction_of_ones_own_work_when_pasted(printed, environment):
    """Every quote in them has to hold in a shell; and `show`, in the next terminal, finds the running stack."""
    lines = STARTED_BY_HAND.search(printed)[0]

    pasted = subprocess.run(
        ["sh", "-c", f"{lines}\necho; echo $ID"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    registered, external_id = pasted.stdout.split("\n", 1)
    job = until(lambda: ended(told(environment, external_id.strip())), "its job has ended", seconds=90)

    assert json.loads(registered)["is_new"], pasted.stdout + pasted.stderr
    assert (job["state"], job["project_id"]) == ("succeeded", "house")


def ended(job):
    return job if job["settled_at"] else None


def told(environment, name):
    """Return the facts that `moorage show` tells."""
    done = fork_server.run(["-m", "cli.main", "show", name, "--json"], cwd=ROOT, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["facts"]


def settled(job_url, headers):
    job = requests.get(job_url, headers=headers, timeout=60).json()
    return job if job["settled_at"] else None
