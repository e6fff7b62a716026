"""Caddy, nginx and the Ingress pass the public paths on, nothing else: the files of deploy/ and those on the page."""

import fnmatch
import re

import pytest
import yaml

from moorage import settings
from tests.support import pages

DEPLOY, PAGE = pages.ROOT / "deploy", pages.HOW_TO / "put-a-proxy-in-front.md"
MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes/moorage.yaml").read_text(encoding="utf-8")))
INSIDE = (
    "/metrics",
    "/metrics/",
    "/api/v1/jobs",
    "/healthz",
    "/readyz",
    "/docs",
    "/openapi.json",
    "/v1",
    "/pages",
    "/ops",
    "/ops/jobs",
)
PUBLIC = (
    "/",
    "/webhooks/replicate",
    "/webhooks/fal",
    "/v1/predictions",
    "/v1/assets/renders/a/0.png",
    "/page/page.css",
)


def nginx_servers(text: str) -> list[dict[tuple[str, str], str]]:
    """Return the locations of each server: (modifier, path) to its body."""
    location = re.compile(r"location (?:(=|\^~) )?(\S+) \{((?:[^{}]|\{[^{}]*\})*)\}")
    servers = re.sub(r"#.*", "", text).split("server {")[1:]
    return [{(kind, path): body for kind, path, body in location.findall(server)} for server in servers]


def nginx_answer(locations: dict[tuple[str, str], str], path: str) -> str:
    """Choose as nginx does: an exact match, else the longest prefix."""
    if ("=", path) in locations:
        return locations["=", path]
    prefixes = [key for key in locations if key[0] != "=" and path.startswith(key[1])]
    return locations[max(prefixes, key=lambda key: len(key[1]))]


@pytest.mark.parametrize("source", ["file", "page"])
def test_nginx_passes_the_public_paths_and_nothing_else(source):
    """/metrics names owners and volumes."""
    text = (DEPLOY / "nginx/moorage.conf").read_text(encoding="utf-8")
    locations, *files = nginx_servers(text if source == "file" else pages.read_blocks(PAGE, "nginx")[0].text)

    for path in PUBLIC:
        assert "proxy_pass http://127.0.0.1:8000;" in nginx_answer(locations, path), path
    for path in INSIDE:
        assert nginx_answer(locations, path).strip() == "return 404;", path
    for store in files:
        assert "return 404" in nginx_answer(store, "/")
        assert "8333" in nginx_answer(store, "/moorage-public/renders/a")


@pytest.mark.parametrize("source", ["file", "page"])
def test_caddy_passes_the_public_paths_and_nothing_else(source):
    """The same paths as nginx."""
    text = (
        (DEPLOY / "caddy/Caddyfile").read_text(encoding="utf-8")
        if source == "file"
        else pages.read_blocks(PAGE, "caddyfile")[0].text
    )
    site = text.split("\nfiles.example.com")[0]
    (matcher,) = re.findall(r"@public path (.*)", site)

    assert re.search(r"handle @public \{\s*reverse_proxy 127\.0\.0\.1:8000\s*\}\s*handle \{\s*respond 404\s*\}", site)
    assert text.count("{") == text.count("}")
    assert {
        path for path in (*PUBLIC, *INSIDE) if any(fnmatch.fnmatchcase(path, one) for one in matcher.split())
    } == set(PUBLIC)


def test_the_ingress_passes_the_public_paths_and_nothing_else():
    """Kubernetes matches whole elements of a path."""
    (ingress,) = [manifest for manifest in MANIFESTS if manifest["kind"] == "Ingress"]
    rules = [(rule["path"], rule["pathType"]) for rule in ingress["spec"]["rules"][0]["http"]["paths"]]

    def is_passed(path: str) -> bool:
        return any(path == rule or (kind == "Prefix" and path.startswith(rule + "/")) for rule, kind in rules)

    assert {path for path in (*PUBLIC, *INSIDE) if is_passed(path)} - {"/v1"} == set(PUBLIC)


def test_the_proxies_grant_bodies_that_moorage_accepts():
    """Otherwise the proxy's own 413 hides the receiver's reason."""
    text = (DEPLOY / "nginx/moorage.conf").read_text(encoding="utf-8")
    webhooks, uploads = (int(size) for size in re.findall(r"client_max_body_size (\d+)m;", text))
    fields = settings.Settings.model_fields

    assert webhooks * 2**20 > fields["webhook_max_bytes"].get_default()
    assert uploads * 2**20 > 8 * fields["upload_max_bytes"].get_default()
    sizes = re.findall(r"max_size (\d+)MB", (DEPLOY / "caddy/Caddyfile").read_text(encoding="utf-8"))
    assert sorted(map(int, sizes)) == sorted([webhooks, uploads])
    (ingress,) = [manifest for manifest in MANIFESTS if manifest["kind"] == "Ingress"]
    assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"] == f"{uploads}m"
