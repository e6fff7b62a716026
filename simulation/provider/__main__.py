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

from simulation.provider import server


def main() -> int:
    """Serve until SIGTERM, SIGINT or the death of the parent process; return the exit status."""
    options = _options()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, _leave)
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    running = server.start(options[0])
    if options[1]:
        _write_whole(options[1], f"{running.server_port}\n")
    sys.stdout.write(f"ready on port {running.server_port}\n")
    sys.stdout.flush()
    running.serve_forever()
    return 0


def _options() -> tuple[server.Options, Path | None]:
    parser = argparse.ArgumentParser(prog="python -m simulation.provider", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--port-file", type=Path, help="where to write the port, once it answers")
    parser.add_argument("--token", required=True, help="the API token to ask for")
    parser.add_argument("--secret", required=True, type=_secret, help="whsec_ and base64 of 24 to 64 bytes")
    parser.add_argument("--pictures", type=Path, help="a folder of pictures and videos to serve")
    parser.add_argument("--ledger", type=Path, help="where to append what was done, as JSON lines")
    given = parser.parse_args()
    if given.pictures and not given.pictures.is_dir():
        parser.error(f"--pictures {given.pictures}: no such folder")
    options = server.Options(given.host, given.port, given.token, given.secret, given.pictures, given.ledger)
    return options, given.port_file


def _secret(text: str) -> str:
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except binascii.Error as error:
        raise argparse.ArgumentTypeError("is not whsec_ and base64") from error
    if not text.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise argparse.ArgumentTypeError("is not whsec_ and base64 of 24 to 64 bytes")
    return text


def _leave(*_: object) -> None:
    os._exit(0)  # nothing is buffered; threads in mid-answer are cut off, as by any stop


def _leave_with(parent: int) -> None:
    """Exit when the parent is gone. Asked by the second: PR_SET_PDEATHSIG would follow the parent's thread."""
    while os.getppid() == parent:
        time.sleep(0.5)
    _leave()


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
