"""moorage installed from its wheel, in an empty folder, with every Python that is on this machine."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.prove

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")


def find_python(version: str) -> str | None:
    """Return an interpreter of the version that starts."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    found = [shutil.which(f"python{version}"), *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    starts = (path for path in found if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0)
    return next(starts, None)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel of a clean checkout: what git does not track must not be needed."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, listed):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(built), "."]
    subprocess.run(command, cwd=source, check=True)
    (found,) = built.glob("*.whl")
    return found


@pytest.mark.parametrize("version", [version for version in VERSIONS if find_python(version)])
def test_demo_and_up_run_from_the_wheel(tmp_path: Path, wheel: Path, version: str) -> None:
    """`pipx install 'moorage[embedded]' && moorage demo`; then `moorage up`, which is stopped by Ctrl-C."""
    python = find_python(version)
    assert python is not None
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True)
    binaries, folder = tmp_path / "venv" / "bin", tmp_path / "empty"
    folder.mkdir()
    subprocess.run([binaries / "python", "-m", "pip", "install", "-q", f"{wheel}[embedded,video]"], check=True)
    env = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}

    demo = subprocess.run([binaries / "moorage", "demo"], cwd=folder, env=env, capture_output=True, text=True)
    assert demo.returncode == 0, demo.stdout + demo.stderr

    log = tmp_path / "up.log"
    with log.open("wb") as sink:
        up = subprocess.Popen([binaries / "moorage", "up"], cwd=folder, env=env, stdout=sink, stderr=sink)
        try:
            end = time.monotonic() + 120
            while not re.search(rb"http://127\.0\.0\.1:\d+", log.read_bytes()):
                assert up.poll() is None, log.read_text(encoding="utf-8")
                assert time.monotonic() < end, log.read_text(encoding="utf-8")
                time.sleep(0.2)
            up.send_signal(signal.SIGINT)
            assert up.wait(60) == 0, log.read_text(encoding="utf-8")
        finally:
            if up.poll() is None:
                up.kill()
                up.wait()
