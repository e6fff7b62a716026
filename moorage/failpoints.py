"""
Named crash points, off unless the environment names one.

`MOORAGE_FAILPOINT=keep.after_upload` kills the process with SIGKILL when it gets there. `NAME:once=PATH` does it only
for the process that creates the file PATH, so that the retry survives; `NAME:raise` raises instead of killing.
`@FOLDER` kills whoever gets to a point that a file in FOLDER is named for, and removes the file: so points are armed,
each for one crash, while the processes run.
"""

import os
import signal
from pathlib import Path
from typing import Final

_SPEC: Final = os.environ.get("MOORAGE_FAILPOINT", "")
_NAME, _, _ACTION = _SPEC.partition(":")
_FOLDER: Final = _SPEC.removeprefix("@") if _SPEC.startswith("@") else None


def failpoint(name: str) -> None:
    """Do nothing, unless the environment asks for a crash just here."""
    if not _SPEC:
        return
    if _FOLDER is not None:
        _crash_if_armed(Path(_FOLDER, name))
    elif name == _NAME:
        _crash()


def _crash_if_armed(file: Path) -> None:
    try:
        file.unlink()  # one process alone removes it
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _crash() -> None:
    if _ACTION == "raise":
        raise RuntimeError(f"failpoint {_NAME}")
    if _ACTION.startswith("once="):
        try:
            os.close(os.open(_ACTION.removeprefix("once="), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)
