"""A client generated from /openapi.json does what an integrator does first."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.api_caller import MODELS, application
from tests.acceptance.world import until
from web import openapi

# Files have the media type of their bytes: the generator takes them as bytes.
CONFIG = {"post_hooks": [], "content_type_overrides": dict.fromkeys(["*/*", "image/*", "video/*"], "application/octet-stream")}  # fmt: skip  # noqa: E501


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """Return an importer of the modules of a client generated without a warning."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "openapi.json").write_text(openapi.document_json())
    (folder / "config.json").write_text(json.dumps(CONFIG))
    command = [
        str(Path(sys.executable).with_name("openapi-python-client")), "generate", "--fail-on-warning", "--meta", "none",
        "--path", "openapi.json", "--config", "config.json", "--output-path", "generated_moorage",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield lambda name: importlib.import_module(f"generated_moorage.{name}")
    sys.path.remove(str(folder))


def test_a_generated_client_creates_a_job_waits_and_downloads_its_file(world, generated):
    """Names, types and models of the document are those of the server, in both directions."""
    shop = application(world)
    models, jobs, renders = generated("models"), "api.jobs", "api.renders"
    request = {"provider": "replicate", "model": MODELS["replicate"], "input": {"prompt": "a client's harbour"}}
    body = models.JobCreate.from_dict({"owner": shop.owner, "chain": [request]})

    with generated("client").AuthenticatedClient(
        base_url=world.local.url, token=shop.token, follow_redirects=True, raise_on_unexpected_status=True
    ) as client:
        created = generated(f"{jobs}.create_job").sync(client=client, body=body, idempotency_key="client-1")
        again = generated(f"{jobs}.create_job").sync(client=client, body=body, idempotency_key="client-1")
        read = generated(f"{jobs}.get_job").sync
        job = until(lambda: (j := read(created.job_id, client=client)).settled_at and j, "the job ended")
        page = generated(f"{renders}.list_renders").sync(client=client, owner=shop.owner)
        file = generated("api.assets.get_asset").sync(job.render_id, "0", client=client)

    assert (created.is_new, again.is_new, again.job_id) == (True, False, created.job_id)
    assert (job.state, job.chain[0].provider, job.variants_created) == ("succeeded", "replicate", len(job.variants))
    assert [render.render_id for render in page.renders] == [job.render_id]
    assert len(file.payload.read()) == page.renders[0].variants[0].bytes_


def test_a_generated_client_reads_a_problem(world, generated):
    """Every invalid field has its name and message."""
    shop = application(world)
    body = generated("models").JobCreate.from_dict({"owner": shop.owner, "chain": []})

    with generated("client").AuthenticatedClient(base_url=world.local.url, token=shop.token) as client:
        problem = generated("api.jobs.create_job").sync(client=client, body=body)

    assert (problem.status, problem.errors[0].field) == (422, "chain")
