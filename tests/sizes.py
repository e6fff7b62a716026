"""Print the size of the code base: lines of the product, of what is counted separately, and the number of settings."""

import subprocess
import sys
from pathlib import Path

from moorage.settings import Settings

PRODUCT = (
    "moorage",
    "providers",
    "storage",
    "media",
    "egress",
    "db",
    "tasks",
    "worker",
    "receiver",
    "web",
    "cli",
    "schema.sql",
)
APART = ("embedded", "bench", "simulation", "clients", "tests")
MAX_PRODUCT, MAX_SIMULATION, MAX_SETTINGS = 36_530, 5_000, 75


def lines(folders: tuple[str, ...]) -> int:
    """Return the lines of Python and SQL that git tracks under the folders."""
    listed = subprocess.run(["git", "ls-files", *folders], capture_output=True, text=True, check=True).stdout.split()
    apart = () if set(folders) & set(APART) else tuple(f"{folder}/" for folder in APART)
    files = [Path(name) for name in listed if name.endswith((".py", ".sql")) and not name.startswith(apart)]
    return sum(
        file.read_text(encoding="utf-8").count("\n") for file in files if file.exists() and not file.is_symlink()
    )


def main() -> int:
    """Print the sizes; return 1 if one is above its limit."""
    settings = len(Settings.model_fields)
    product, simulation = lines(PRODUCT), lines(("simulation",))
    apart = ", ".join(f"{folder} {lines((folder,))}" for folder in APART)
    sys.stdout.write(f"settings: {settings} (at most {MAX_SETTINGS})\n")
    sys.stdout.write(f"lines: product {product} (at most {MAX_PRODUCT}: {', '.join(PRODUCT)}); apart: {apart}\n")
    return int(settings > MAX_SETTINGS or product > MAX_PRODUCT or simulation > MAX_SIMULATION)


if __name__ == "__main__":
    sys.exit(main())
