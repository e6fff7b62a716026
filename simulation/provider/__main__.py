"""Start the stand-in: `python -m simulation.provider --token T --secret whsec_...`."""

import argparse
import base64
import binascii
import os
import signal
import sys
import threading
import time
from pathlib import Path

from simulation.provider import declared, server


def main() -> int:
    """Serve until SIGTERM, SIGINT or the end of the parent process."""
    options = _parse_options()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    running = server.start_server(options)
    if options.port_file:
        _write_atomically(options.port_file, f"{running.server_port}\n")
    sys.stdout.write(f"ready on port {running.server_port}\n")
    sys.stdout.flush()
    running.serve_forever()
    return 0


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulation.provider", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 selects a free one")
    parser.add_argument("--port-file", type=Path, help="file for the port, written when the server is ready")
    parser.add_argument("--token", required=True, help="the required API token")
    parser.add_argument("--secret", required=True, type=_parse_secret, help="whsec_ and base64 of 24 to 64 bytes")
    parser.add_argument("--pictures", type=Path, help="a folder of pictures and videos to serve")
    parser.add_argument(
        "--providers", type=Path, default=declared.PATH, help="TOML file of declared providers to serve"
    )
    parser.add_argument("--ledger", type=Path, help="file for the ledger, as JSON lines")
    options = parser.parse_args()
    if options.pictures and not options.pictures.is_dir():
        parser.error(f"--pictures {options.pictures}: no such folder")
    return options


def _parse_secret(text: str) -> str:
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except binascii.Error as error:
        raise argparse.ArgumentTypeError("is not whsec_ and base64") from error
    if not text.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise argparse.ArgumentTypeError("is not whsec_ and base64 of 24 to 64 bytes")
    return text


def _exit(*_: object) -> None:
    os._exit(0)  # no data is buffered; open responses are cut off, as by any stop


def _exit_with_parent(parent: int) -> None:
    """Exit when the parent process has ended. Polled: PR_SET_PDEATHSIG follows the parent's thread."""
    while os.getppid() == parent:
        time.sleep(0.5)
    _exit()


def _write_atomically(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
