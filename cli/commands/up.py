"""`moorage up`: run the complete stack locally, and print its addresses and example commands."""

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import requests
from rich.console import Console

from embedded.dotenv_file import dotenv_file
from embedded.folders import occupy
from moorage.errors import ConfigError
from moorage.owner_tokens import MAX_LIFETIME_SECONDS, SCOPES
from moorage.settings import env_names_by_field
from moorage.settings_sources import read_file
from simulation.provider.client import Standin, build_standin
from worker import inspect_cluster
from worker.local_deployment import INHERITED, LocalDeployment, data_folder

OWNER: Final = "me"
OWN: Final = {  # settings that are the stack's in any case
    *("MOORAGE_ENV", "MOORAGE_API_TOKEN", "MOORAGE_METRICS_ADDRESS", "MOORAGE_MANAGE_BUCKETS"),
    *("MOORAGE_EGRESS_ALLOW", "MOORAGE_PROVIDERS_FILE"),
    *("MOORAGE_IN_FLIGHT", "MOORAGE_ALLOW_UNSIGNED", "MOORAGE_IGNORE_UNREGISTERED"),  # may name declared providers
}
REAL: Final = {"fal": "FAL_KEY", "openai": "OPENAI_API_KEY", "replicate": "REPLICATE_API_TOKEN"}
COMMAND: Final = os.path.relpath(Path(sys.executable).with_name("moorage"))  # as the user may call it
WORKER_SECONDS: Final = 60.0
OF_THE_SHELL: Final = {*INHERITED, "PYTHONPATH", "PYTHONUNBUFFERED", "LOG_LEVEL", "LOG_FORMAT"}


@click.command()
@click.option(
    "--folder", type=click.Path(path_type=Path), default=lambda: data_folder("up"), show_default=".moorage/up"
)
@click.option(
    "--pictures", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Image folder for the stand-in."
)
@click.option(
    "--real", multiple=True, type=click.Choice(sorted(REAL)), help="Use this provider, not the stand-in; repeatable."
)
@click.option("--public-url", help="https: URL at which the internet reaches this receiver, for example of a tunnel.")
def up(folder: Path, pictures: Path | None, real: Sequence[str], public_url: str | None) -> None:
    """
    Run servers, receiver, workers, beat, Flower and a provider stand-in until Ctrl-C. Data is kept in the folder.

    With --real, the token is read from the environment (REPLICATE_API_TOKEN, FAL_KEY, OPENAI_API_KEY).
    """
    console = Console(highlight=False, soft_wrap=True)
    overrides = _build_overrides(real, public_url)
    if ignored := sorted(_list_given() - overrides.keys()):
        console.print(f"not used by this stack: {', '.join(ignored)}", style="yellow")
    console.print("starting PostgreSQL, Valkey, SeaweedFS, receiver, workers, beat, Flower ...")
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as running:
        running.enter_context(occupy(folder))
        standin = None if real else running.enter_context(build_standin(folder, pictures).start(folder / "standin"))
        deployment = LocalDeployment(folder, standin=standin, flower=True, fixed_ports=True, overrides=overrides)
        local = running.enter_context(deployment)
        env_file, values = data_folder("up.env"), local.environment()
        running.enter_context(dotenv_file(env_file, {x: values[x] for x in values.keys() - OF_THE_SHELL}))
        _await_workers(local)
        for name, port in local.moved_ports.items():
            console.print(f"port {port} ({name}) is in use: stored URLs and old exports lead there", style="yellow")
        parts = [_format_addresses(local, standin, env_file), _format_examples(local, standin), _format_page_url(local)]
        console.print(*parts, sep="\n", soft_wrap=True)
        running.callback(console.print, "stopping ...")
        while True:
            time.sleep(1.0)
            for name in local.restart_dead():
                console.print(f"{name} had died and was restarted; see {folder / 'logs'}")


def _build_overrides(real: Sequence[str], public_url: str | None) -> dict[str, str]:
    """Return settings of the environment and of real providers, and the public URL. Raises ConfigError: no token."""
    prefixes = ("MOORAGE_", *(REAL[name].partition("_")[0] + "_" for name in real))
    overrides = {x: _read(x) for x in _list_given() if x.startswith(prefixes) and x not in OWN}
    if file := overrides.get("MOORAGE_PLACEHOLDER_FILE"):
        overrides["MOORAGE_PLACEHOLDER_FILE"] = str(Path(file).absolute())
    overrides |= {} if public_url is None else {"PUBLIC_URL": public_url}
    for name in real:
        if not overrides.get(REAL[name]):
            raise ConfigError(f"--real {name} needs {REAL[name]} in the environment")
    if real and public_url is None:
        overrides["MOORAGE_DEV_POLL_FIRST_SECONDS"] = "3"  # nothing else tells that a prediction has ended
    return overrides


def _list_given() -> set[str]:
    """Return the names of settings in the environment, also as NAME_FILE."""
    return {x for names in env_names_by_field().values() for x in names if os.environ.keys() & {x, f"{x}_FILE"}}


def _read(name: str) -> str:
    path = os.environ.get(f"{name}_FILE")
    return os.environ.get(name) or (read_file(name, path) if path else "")


def _await_workers(local: LocalDeployment) -> None:
    """Wait until each queue has a worker, so that the printed commands work; not for one that cannot start."""
    os.environ.update(local.environment())  # for the Celery application, which is imported below
    until = time.monotonic() + WORKER_SECONDS
    while not all(inspect_cluster.count_consumers(inspect_cluster.list_consumers() or {}).values()):
        if time.monotonic() > until:
            return
        local.restart_dead()


def _format_addresses(local: LocalDeployment, standin: Standin | None, env_file: Path) -> str:
    token, flower, environment = local.secrets["api_token"], local.secrets["flower_password"], local.environment()
    return f"""
[bold]moorage is up.[/bold] Ctrl-C stops it; data and logs are in {local.folder}

  receiver   {local.url}/webhooks/replicate
  console    {local.url}/ops       (sign in with the token {token})
  API        {local.url}/v1        (the same token as a bearer token)
  metrics    http://127.0.0.1:{local.metrics_port}/metrics   health {local.url}/healthz {local.url}/readyz
  Flower     {local.flower_url}    (user moorage, password {flower})
  S3         {environment["AWS_ENDPOINT_URL_S3"]}    (key {environment["AWS_ACCESS_KEY_ID"]}, secret in {env_file})
{_format_provider(local, standin)}

In another terminal, in this folder, for the commands of the documentation:

  eval "$({COMMAND} env)"
"""


def _format_provider(local: LocalDeployment, standin: Standin | None) -> str:
    if standin is not None:
        return f"""  stand-in   {standin.url}/v1      (behaves like Replicate; bearer token {standin.token})
             {standin.url}/fal and /openai behave like fal and OpenAI; see docs/reference/stand-in.md"""
    url = local.environment()["PUBLIC_URL"]
    if url.startswith("https:"):
        return f"  webhooks   {url}/webhooks/PROVIDER"
    return "  webhooks   cannot arrive from the internet: results are found by polling (--public-url URL changes it)"


def _format_examples(local: LocalDeployment, standin: Standin | None) -> str:
    token = local.secrets["api_token"]
    commands = f"""
  {COMMAND} status
  {COMMAND} keep FOLDER-WITH-PICTURES --owner {OWNER}
"""
    if standin is None:
        return commands
    return f"""[bold]Try it[/bold] in another terminal, in this folder:

  # generate an image; the second entry is used if the first one fails
  curl -s {local.url}/v1/jobs -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' \\
    -d '{{"owner": "{OWNER}", "input": {{"prompt": "a boat"}}, "placeholder": true, "chain": [
         {{"provider": "fal", "model": "standin/failing"}}, {{"provider": "replicate", "model": "standin/pictures"}}]}}'

  # or start a prediction at the stand-in, as an application does at Replicate, and register it
  ID=$(curl -s {standin.url}/v1/predictions \\
    -H 'Authorization: Bearer {standin.token}' -H 'Content-Type: application/json' \\
    -d '{{"version": "5c7d5dc6", "input": {{"prompt": "a boat"}}, "webhook": "{local.url}/webhooks/replicate"}}' \\
    | python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')
  curl -s {local.url}/v1/predictions -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' \\
    -d '{{"provider": "replicate", "external_id": "'$ID'", "owner": "{OWNER}", "project_id": "house", "scene": 1}}'

  # its state and history (the job_id of the response works, too)
  {COMMAND} show $ID{commands}"""


def _format_page_url(local: LocalDeployment) -> str:
    """Return the URL of the page with an owner token, created as an application creates them for its users."""
    response = requests.post(
        f"{local.url}/v1/owner-tokens",
        json={"owner": OWNER, "seconds": MAX_LIFETIME_SECONDS, "scopes": SCOPES},
        headers={"Authorization": f"Bearer {local.secrets['api_token']}"},
        timeout=10,
    )
    response.raise_for_status()
    return f"""[bold]Page with the results[/bold] (valid for a day; POST /v1/owner-tokens creates a new token):

  {local.url}/#token={response.json()["token"]}
"""
