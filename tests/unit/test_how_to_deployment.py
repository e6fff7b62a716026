"""The files of deploy/ and the pages about them name what exists: commands, settings, paths, ports, metrics, units."""

import base64
import configparser
import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from cli import main
from db.reports.metrics import GAUGE_QUERIES
from moorage import settings
from tests.support import pages, promql
from tests.support.exposition import render_metrics
from worker.queues import QUEUES

DEPLOY = pages.ROOT / "deploy"
HOW_TOS = sorted(pages.HOW_TO.glob("*.md"))
KNOWN_SETTINGS = {name for names in settings.env_names_by_field().values() for name in names}
COMPOSE = yaml.safe_load((pages.ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
SERVICES = sorted((DEPLOY / "systemd").glob("*.service"))
RECEIVER = (pages.ROOT / "receiver/app.py").read_text(encoding="utf-8")
MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes/moorage.yaml").read_text(encoding="utf-8")))
PODS = {manifest["metadata"]["name"]: manifest for manifest in MANIFESTS if manifest["kind"] in ("Deployment", "Job")}

OVERRIDE = "!override "  # a tag of compose: the value replaces that of the extended service


def page_ids(page: Path) -> str:
    return page.stem


# --- commands and names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", HOW_TOS, ids=page_ids)
def test_every_command_of_a_page_exists_with_its_options(page):
    """A command that fails on the first evening is the last one that is tried."""
    text = page.read_text(encoding="utf-8")
    prose = " ".join(re.sub(r"```.*?```", "", text, flags=re.DOTALL).split())
    lines = [line for block in pages.read_blocks(page) for line in block.text.splitlines()]
    commands = [*re.findall(r"`moorage ([a-z][^`]*)`", prose), *(found for line in lines for found in called_in(line))]

    for command in commands:
        assert_exists(command)


def called_in(line: str) -> list[str]:
    """Return the commands of moorage in a line of a transcript."""
    if not re.match(r"[$#] ", line):
        return []
    return re.findall(r"(?:^[$#] |-- |&& )(?:\w+=\S+ )*(?:\.venv/bin/)?moorage ([a-z][^|&#;]*)", line)


def assert_exists(text: str) -> None:
    name, *words = text.split()
    assert name in main.COMMANDS, text
    command: Any = main.cli.get_command(click.Context(main.cli), name)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command = command.commands[words.pop(0)]
    if command.context_settings.get("ignore_unknown_options") and name != "receiver":
        return  # Celery's and Flower's own
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= options, text


def test_the_check_of_commands_sees_a_wrong_one():
    """Otherwise the test above would pass for any page."""
    assert called_in("# A=b .venv/bin/moorage recover replicate --since 1h") == ["recover replicate --since 1h"]
    assert called_in("$ kubectl exec deploy/moorage-receiver -- moorage doctor") == ["doctor"]
    assert called_in("$ kubectl delete job moorage-migrate") == []
    for wrong in ("restore", "recover --sinces 1h", "token creat shop"):
        with pytest.raises((AssertionError, KeyError)):
            assert_exists(wrong)


@pytest.mark.parametrize("page", HOW_TOS, ids=page_ids)
def test_every_metric_and_expression_of_a_page_exists(page):
    """A query for a misspelt metric is empty, which looks like silence."""
    text = page.read_text(encoding="utf-8")
    expressions = [block.text for block in pages.read_blocks(page, "promql")]
    expressions += re.findall(r"`((?:sum|max|min)\b[^`]*\(moorage_[^`]*)`", text)
    for expression in expressions:
        for name, labels in promql.parse(expression).uses():
            assert_has_labels(name, labels)
    for name in re.findall(r"\bmoorage_[a-z_0-9]+", text):
        assert name in known_metrics(), name


def known_metrics() -> set[str]:
    text = render_metrics()
    counters = re.findall(r"^# TYPE (moorage_\w+)|^(moorage_\w+)", text, re.MULTILINE)
    return {
        "moorage_database_up",
        "moorage_gauge_failed",
        *(name for name, _, _ in GAUGE_QUERIES),
        *(name for pair in counters for name in pair),
        *(f"{name}_bucket" for name in re.findall(r"^# TYPE (moorage_\w+) histogram", text, re.MULTILINE)),
    }


def assert_has_labels(name: str, labels: frozenset[str]) -> None:
    assert name in known_metrics(), name
    sql = {metric: query for metric, _, query in GAUGE_QUERIES}.get(name)
    for label in labels if sql is not None else ():
        assert re.search(rf"\b{label}\b", sql), (name, label)


@pytest.mark.parametrize("page", HOW_TOS, ids=page_ids)
def test_every_file_of_settings_and_yaml_on_a_page_can_be_read(page):
    """What is copied into a file must be accepted there."""
    for block in pages.read_blocks(page):
        if block.language == "ini":
            names = [line.split("=", 1)[0] for line in block.text.splitlines() if not line.startswith("#")]
            assert set(names) - {"RENDERS_URL"} <= KNOWN_SETTINGS  # the application's own
        if block.language in ("yaml", "json"):
            assert list(
                (yaml.safe_load_all if block.language == "yaml" else json.loads)(block.text.replace(OVERRIDE, ""))
            )


# --- systemd -------------------------------------------------------------------------------------------------------


def read_unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True, interpolation=None, comment_prefixes=("#",), delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text(encoding="utf-8"))
    return parser


@pytest.mark.parametrize("path", SERVICES, ids=page_ids)
def test_a_unit_runs_a_command_that_exists_with_settings_that_exist(path):
    """A unit is read at boot, when nobody looks."""
    service = read_unit(path)["Service"]
    program, *command = shlex.split(service["ExecStart"])
    names = {pair.split("=")[0] for pair in service["Environment"].split()}

    assert program == service["WorkingDirectory"] + "/.venv/bin/moorage"
    assert_exists(" ".join(command))
    assert names - {"PYTHONUNBUFFERED", "TMPDIR", "MOORAGE_DOTENV"} <= KNOWN_SETTINGS
    if command[0] == "worker":
        assert int(service["TimeoutStopSec"]) > settings.Settings.model_fields["stop_grace_seconds"].get_default()
        assert service["KillMode"] == "mixed"


def test_the_units_and_manifests_run_the_processes_of_compose():
    """A queue without a worker is work that waits for ever."""
    of_compose = {
        name for name, service in COMPOSE.items() if "ports" not in service and "moorage" in str(service.get("image"))
    }
    processes = {*of_compose, "receiver"} - {"flower", "storage-setup"}
    target = read_unit(DEPLOY / "systemd/moorage.target")["Unit"]["Wants"].split()
    commands = [shlex.split(read_unit(path)["Service"]["ExecStart"])[1:] for path in SERVICES]
    args = [manifest["spec"]["template"]["spec"]["containers"][0]["args"] for manifest in PODS.values()]

    assert {path.stem for path in SERVICES} == {f"moorage-{name}" for name in processes} == set(PODS)
    assert {*target, "moorage-migrate.service"} == {path.name for path in SERVICES}
    for found in (commands, args):
        assert sorted(words[2] for words in found if words[0] == "worker") == sorted(QUEUES)


@pytest.mark.parametrize("page", HOW_TOS, ids=page_ids)
def test_every_unit_and_file_of_deploy_that_a_page_names_exists(page):
    """Also in commands, which no link checker reads."""
    text = page.read_text(encoding="utf-8")
    units = set(re.findall(r"\bmoorage[a-z-]*\.(?:service|target)\b", text))

    assert units <= {path.name for path in (DEPLOY / "systemd").iterdir()}
    for name in re.findall(r"(?<![\w/])deploy/[\w./-]*\w", text):
        assert (pages.ROOT / name).exists() or name.removeprefix("deploy/") in PODS, name


# --- Kubernetes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PODS))
def test_a_pod_runs_a_command_that_exists_and_is_probed_where_it_answers(name):
    """A wrong probe restarts a healthy pod for ever."""
    pod = PODS[name]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}

    assert_exists(" ".join(container["args"]))
    assert pod["securityContext"]["runAsUser"] == 10001  # of the Dockerfile
    assert "USER 10001" in (pages.ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert [
        source["configMapRef" if index == 0 else "secretRef"]["name"]
        for index, source in enumerate(container["envFrom"])
    ] == ["moorage"] * 2
    if container["args"][0] == "receiver":
        paths = {container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")}
        assert all(f'"{path}"' in RECEIVER for path in paths)
        assert container["args"][-1] == str(container["ports"][0]["containerPort"]) == "8000"
    elif container["args"][0] != "migrate":
        assert "$MOORAGE_ALIVE_FILE" in container["livenessProbe"]["exec"]["command"][-1]
        assert pod["terminationGracePeriodSeconds"] == 45
        assert mounts == {"/tmp", "/spool"}


@pytest.mark.parametrize("name", sorted(PODS))
def test_a_pod_has_no_variables_of_the_service(name):
    """The Service `moorage` puts MOORAGE_PORT into every container, which settings refuse as an unknown name."""
    assert PODS[name]["spec"]["template"]["spec"]["enableServiceLinks"] is False


def fill_in(values: dict[str, str]) -> dict[str, str]:
    """Replace what the reader must write: secrets, and the parts of URLs in capitals."""
    secret = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
    filled = {name: re.sub(r"\b(USER|PASSWORD|HOST)\b", "localhost", value) for name, value in values.items()}
    return {
        name: secret if value.startswith("whsec_") else "0123456789" * 4 if name == "MOORAGE_API_TOKEN" else value
        for name, value in filled.items()
    }


@pytest.mark.parametrize("source", ["manifests", "systemd", "replicate"])
def test_production_starts_with_the_settings_shown(monkeypatch, source):
    """One value that is refused ends the start of every process."""
    if source == "manifests":
        shown = {
            name: text
            for one in MANIFESTS
            for name, text in {**one.get("data", {}), **one.get("stringData", {})}.items()
        }
    else:
        page = pages.HOW_TO / {"systemd": "run-with-systemd.md", "replicate": "keep-replicate-pictures.md"}[source]
        shown = dict(line.split("=", 1) for line in pages.read_blocks(page, "ini")[0].text.splitlines())
    servers = {"DATABASE_URL": "postgresql://localhost/moorage", "CELERY_BROKER_URL": "redis://localhost/0"}
    for name in KNOWN_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in {**servers, **fill_in(shown), "MOORAGE_ENV": "production"}.items():
        monkeypatch.setenv(name, value)

    loaded = settings.load_settings()

    assert set(shown) <= KNOWN_SETTINGS
    assert source == "replicate" or shown["MOORAGE_ENV"] == "production"  # `moorage doctor` reads it there
    assert loaded.env == "production"
    assert loaded.replicate_webhook_secret
    assert loaded.public_url == "https://moorage.example.com"


def test_keda_scales_the_workers_that_keep_by_a_gauge_that_exists():
    """And not by the length of a queue, which dispatch limits."""
    scaled = yaml.safe_load((DEPLOY / "kubernetes/keda.yaml").read_text(encoding="utf-8"))["spec"]
    (trigger,) = scaled["triggers"]
    query = trigger["metadata"]["query"]
    page = (pages.HOW_TO / "run-on-kubernetes.md").read_text(encoding="utf-8")
    samples = [promql.Sample("moorage_outputs", {"state": "waiting", "provider": name, "instance": one}, 30.0)
               for name in ("fal", "replicate") for one in ("a", "b")]  # fmt: skip

    assert scaled["scaleTargetRef"]["name"] in PODS
    assert "replicas" not in PODS["moorage-worker-keep"]["spec"]
    assert scaled["minReplicaCount"] >= 1
    for name, labels in promql.parse(query).uses():
        assert_has_labels(name, labels)
    assert promql.evaluate(promql.parse(query), samples, 0.0) == {frozenset(): 60.0}
    assert pages.read_blocks(pages.HOW_TO / "run-on-kubernetes.md", "promql")[0].text.strip() == query
    assert f"at most {settings.Constants().queue_depth} of them" in page


# --- Prometheus and Grafana ----------------------------------------------------------------------------------------


def test_prometheus_reads_the_alerts_and_scrapes_the_receiver():
    """The path of a rule file is relative to the configuration."""
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]

    assert (DEPLOY / "prometheus" / config["rule_files"][0]).resolve() == DEPLOY / "alerts.yml"
    assert job["static_configs"] == [{"targets": ["127.0.0.1:9464"]}]
    assert COMPOSE["receiver"]["ports"] == ["127.0.0.1:8000:8000", "127.0.0.1:9464:9464"]


def test_a_second_receiver_has_other_ports_than_the_first():
    """Compose adds the ports of a service to those of the service that it extends."""
    (block,) = pages.read_blocks(pages.HOW_TO / "deploy-with-compose.md", "yaml")
    second = yaml.safe_load(block.text.replace(OVERRIDE, ""))["services"]["receiver-2"]
    given, first = second["ports"], COMPOSE["receiver"]["ports"]

    assert f"ports: {OVERRIDE}" in block.text
    assert second["extends"] == {"file": "docker-compose.yml", "service": "receiver"}
    assert [port.rpartition(":")[2] for port in given] == [port.rpartition(":")[2] for port in first]
    taken = {port.rpartition(":")[0] for service in COMPOSE.values() for port in service.get("ports", ())}
    assert not taken & {port.rpartition(":")[0] for port in given}


def test_grafana_finds_the_dashboard_where_the_page_puts_it():
    """And the datasource of the kind that the dashboard asks for."""
    folder = DEPLOY / "grafana/provisioning"
    (provider,) = yaml.safe_load((folder / "dashboards/moorage.yml").read_text(encoding="utf-8"))["providers"]
    (source,) = yaml.safe_load((folder / "datasources/moorage.yml").read_text(encoding="utf-8"))["datasources"]
    dashboard = json.loads((DEPLOY / "grafana/moorage.json").read_text(encoding="utf-8"))
    page = (pages.HOW_TO / "monitor-with-prometheus.md").read_text(encoding="utf-8")

    assert f"{provider['options']['path']}/moorage.json" in page
    assert source["type"] == dashboard["templating"]["list"][0]["query"]
