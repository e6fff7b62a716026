"""The papers of the project: versions agree, locks are whole, nothing names a place that only its maker has."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from moorage import VERSION
from tests.acceptance import compose_file

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements.runtime.lock")
PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)(?:\[[a-z,]+\])?==(\S+)", re.MULTILINE)
REQUIRED = (
    "PUBLIC_URL",
    "S3_PUBLIC_ENDPOINT_URL",
    "MOORAGE_API_TOKEN",
    "FLOWER_PASSWORD",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "POSTGRES_PASSWORD",
    "VALKEY_PASSWORD",
)

# In halves, so that this file does not hold what it looks for.
_HOSTS = ("pypi." + "org", "pythonhosted." + "org", "registry." + "npmjs", "devpi" + ".", "artifactory" + ".")
_PLACES = ("/ho" + "me/", "/Us" + "ers/", "/ro" + "ot/", "/wo" + "rk/")


def tracked() -> list[Path]:
    """Return the files that git would give away, as they are now; in an exported tree, without git, all there are."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = [name for name in listed.stdout.split("\0") if name]
    if listed.returncode != 0:
        hidden = {".venv", ".moorage", "__pycache__", ".git"}
        names = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file() and not hidden & set(p.parts)]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def text_of(path: Path) -> str:
    """Return a file as text; what is no text has no lines to look at."""
    return path.read_bytes().decode("utf-8", errors="replace")


def test_no_file_names_a_package_registry_or_a_folder_of_its_maker():
    """Whoever clones this has other folders, and may have another registry."""
    absolute = re.compile("|".join(rf"(?<![\w.~${{}}/-]){re.escape(place)}" for place in _PLACES))
    build = re.compile(r"--mount=type=cache,target=\S+")  # a folder of the image that is being built

    found = {
        f"{path.relative_to(ROOT)}: {line.strip()[:100]}"
        for path in tracked()
        for line in text_of(path).splitlines()
        if any(host in line for host in _HOSTS) or absolute.search(build.sub("", line))
    }

    assert found == set()


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_of_a_lock_has_hashes_and_none_an_address(name):
    """pip refuses a package without a hash, and an address would decide where others install from."""
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]

    assert blocks
    assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block or "==" not in block] == []
    assert re.findall(r"https?://|--(?:extra-)?index-url|--find-links", text) == []


def test_the_image_installs_versions_that_were_tested():
    """The lock of the image is a part of the lock that tests run with."""
    tested, shipped = (set(PIN.findall((ROOT / name).read_text(encoding="utf-8"))) for name in LOCKS)

    assert shipped
    assert shipped - tested == set()


def test_the_image_holds_no_development_tool():
    """What is not there cannot be used against it."""
    shipped = {name for name, _ in PIN.findall((ROOT / LOCKS[1]).read_text(encoding="utf-8"))}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tools = {re.split(r"[\[<>=~ ]", line)[0] for line in project["dependency-groups"]["dev"]}

    assert shipped & tools == set()


def test_versions_agree():
    """A version that is told in three ways is told in none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)

    assert project["version"] == VERSION
    assert "## [Unreleased]" in changelog
    assert released[0] == VERSION if released else f"version, {VERSION}" in changelog
    assert f"IMAGE_TAG:-{VERSION}" in text_of(ROOT / "docker-compose.yml")


def test_every_make_target_that_is_named_exists():
    """The first thing that a newcomer types has to work."""
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]

    named = {name for page in pages for name in re.findall(r"(?:^ *|`)make ([a-z-]+)", text_of(page), re.MULTILINE)}

    assert named
    assert named - targets == set()


@pytest.mark.parametrize("name", REQUIRED)
def test_compose_refuses_to_start_without_a_value(name):
    """A default password is one that everybody knows."""
    values = {other: "0123456789abcdef" for other in REQUIRED if other != name}

    with pytest.raises(compose_file.Missing, match=f"^{name}: write"):
        compose_file.interpolated(compose_file.load(), values)


def test_compose_asks_for_nothing_else():
    """What is required stands in .env.example, at its top."""
    compose_file.interpolated(compose_file.load(), dict.fromkeys(REQUIRED, "0123456789abcdef"))


def test_compose_opens_ports_on_loopback_alone():
    """Docker opens a published port past the machine's own firewall."""
    ports = [port for spec in compose_file.load()["services"].values() for port in spec.get("ports", [])]

    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_compose_pins_every_image():
    """`latest` is another program tomorrow."""
    images = [spec["image"] for spec in compose_file.load()["services"].values()]

    assert [image for image in images if ":" not in image or image.endswith(":latest")] == []


@pytest.mark.parametrize("name", compose_file.OURS)
def test_compose_gives_our_containers_no_more_than_they_need(name):
    """They decode what strangers made."""
    spec = compose_file.load()["services"][name]

    assert spec["cap_drop"] == ["ALL"]
    assert spec["read_only"] is True
    assert spec["user"] == "10001:10001"
    assert spec["security_opt"] == ["no-new-privileges:true"]


def test_compose_waits_longer_for_a_worker_than_the_worker_for_its_work():
    """A worker that is killed before its grace is over hands nothing back."""
    grace = compose_file.load()["services"]["worker-keep"]["stop_grace_period"]

    assert int(grace.removesuffix("s")) >= 2 * 20  # the default of MOORAGE_STOP_GRACE_SECONDS


def test_compose_gives_the_stores_the_keys_of_dot_env():
    """Both are written into files that only the servers read: what they say is seen nowhere else."""
    values = {name: f"value-of-{name}" for name in REQUIRED}
    configs = compose_file.interpolated(compose_file.load(), values)["configs"]

    (identity,) = json.loads(configs["seaweedfs"]["content"])["identities"]
    valkey = dict(line.split(" ", 1) for line in configs["valkey"]["content"].splitlines())

    keys = {"accessKey": "value-of-AWS_ACCESS_KEY_ID", "secretKey": "value-of-AWS_SECRET_ACCESS_KEY"}
    assert identity["credentials"] == [keys]
    assert valkey["requirepass"] == "value-of-VALKEY_PASSWORD"
    assert valkey["maxmemory-policy"] == "noeviction"
