"""The wheel has every file that the packages read: those that are not Python are listed in pyproject.toml."""

import subprocess
import tomllib
from pathlib import Path, PurePath

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
PACKAGES = [name.removesuffix("*") for name in SETTINGS["packages"]["find"]["include"]]


def tracked() -> list[PurePath]:
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    return [PurePath(line) for line in listed.stdout.splitlines() if (ROOT / line).exists()]


def test_every_file_of_a_package_is_in_the_wheel() -> None:
    """A template or a migration that is missing stops an installed moorage, not a checkout."""
    listed = {
        PurePath(package) / found.relative_to(ROOT / package)
        for package, patterns in SETTINGS["package-data"].items()
        for pattern in patterns
        for found in (ROOT / package).glob(pattern)
    }

    assert {path for path in tracked() if path.suffix != ".py"} == listed


def test_every_folder_with_python_is_a_package() -> None:
    folders = {path.parent for path in tracked() if path.suffix == ".py"}

    assert {folder for folder in folders if not (ROOT / folder / "__init__.py").exists()} == set()


def test_every_import_root_is_packaged() -> None:
    """A new top-level package is one of the types, of the import contracts, and of the wheel."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]

    assert sorted(PACKAGES) == sorted(tool["importlinter"]["root_packages"])


def test_links_lead_to_files_of_the_repository() -> None:
    """`schema.sql` stays in the root: the package has a link, of which the wheel has the content."""
    links = [ROOT / path for path in tracked() if (ROOT / path).is_symlink()]

    assert sorted(str(link.resolve().relative_to(ROOT)) for link in links) == [
        ".env.example",
        "docs/runbook.md",
        "schema.sql",
    ]
