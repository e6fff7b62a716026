"""
Named crash points, off unless the environment names one.

`MOORAGE_FAILPOINT=keep.after_upload` kills the process with SIGKILL when it gets there. `NAME:once=PATH` does it only
for the process that creates the file PATH, so that the retry survives; `NAME:raise` raises instead of killing.
"""

import os
import signal
from typing import Final

_SPEC: Final = os.environ.get("MOORAGE_FAILPOINT", "")
_NAME, _, _ACTION = _SPEC.partition(":")


def failpoint(name: str) -> None:
    """Do nothing, unless the environment asks for a crash just here."""
    if _NAME and name == _NAME:
        _crash()


def _crash() -> None:
    if _ACTION == "raise":
        raise RuntimeError(f"failpoint {_NAME}")
    if _ACTION.startswith("once="):
        try:
            os.close(os.open(_ACTION.removeprefix("once="), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)
