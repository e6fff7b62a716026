"""`python -m bench [PART...]`: run parts one after the other, each in a process of its own; without names, all."""

import subprocess
import sys
import time
from typing import Final

from bench.results import ROOT

PARTS: Final = (
    "receiver",
    "pipeline",
    "latency",
    "burst",
    "sweeps",
    "statements",
    "memory",
    "growth",
    "scale",
    "thumbnails",
    "retention",
    "idle",
    "streams",
)


def main(names: list[str]) -> int:
    """Return 1 if a part failed; the others run all the same."""
    unknown = set(names) - set(PARTS)
    if unknown:
        raise SystemExit(f"unknown part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    failed, started = [], time.monotonic()
    for part in names or PARTS:
        print(f"\n== {part}", flush=True)
        if subprocess.run([sys.executable, "-m", f"bench.{part}"], cwd=ROOT, check=False).returncode:
            failed.append(part)
    print(f"\n{len(names or PARTS)} parts in {time.monotonic() - started:.0f} s; failed: {', '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
