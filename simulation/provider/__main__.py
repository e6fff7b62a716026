"""Start the stand-in: `python -m simulation.provider --token T --secret whsec_...`."""

import argparse
import os
import re
import signal
import sys
from pathlib import Path

from simulation.provider import declared, server


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    options = _parse_options()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))  # no data is buffered; open responses are cut off, as by any stop
    running = server.start_server(options)
    if options.port_file:
        part = options.port_file.with_suffix(".part")
        part.write_text(f"{running.server_port}\n")
        part.replace(options.port_file)  # at once
    sys.stdout.write(f"ready on port {running.server_port}\n")
    sys.stdout.flush()
    running.serve_forever()


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulation.provider", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 selects a free one")
    parser.add_argument("--port-file", type=Path, help="file for the port, written when the server is ready")
    parser.add_argument("--token", required=True, help="the required API token")
    parser.add_argument("--secret", required=True, help="whsec_ and base64 of 24 to 64 bytes")
    parser.add_argument("--pictures", type=Path, help="a folder of pictures and videos to serve")
    parser.add_argument(
        "--providers", type=Path, default=declared.PATH, help="TOML file of declared providers to serve"
    )
    parser.add_argument("--ledger", type=Path, help="file for the ledger, as JSON lines")
    options = parser.parse_args()
    if not re.fullmatch("whsec_[A-Za-z0-9+/]{32,86}={0,2}", options.secret):
        parser.error("--secret is not whsec_ and base64 of 24 to 64 bytes")
    if options.pictures and not options.pictures.is_dir():
        parser.error(f"--pictures {options.pictures}: no such folder")
    return options


if __name__ == "__main__":
    main()
