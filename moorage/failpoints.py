"""
Named crash points for tests, disabled unless MOORAGE_FAILPOINT is set.

`NAME` kills the process with SIGKILL when it reaches the point `NAME`. `NAME:once=PATH` kills only the process that
creates the file PATH, so that the retry survives. `NAME:raise` raises RuntimeError instead. `@FOLDER` kills the process
that reaches a point with a file of that name in FOLDER, and removes the file: this arms a point for one crash while the
processes run.
"""

import os
import signal
from pathlib import Path
from typing import Final

_SPEC: Final = os.environ.get("MOORAGE_FAILPOINT", "")
_NAME, _, _ACTION = _SPEC.partition(":")
_FOLDER: Final = _SPEC.removeprefix("@") if _SPEC.startswith("@") else None


def failpoint(name: str) -> None:
    if not _SPEC:
        return
    if _FOLDER is not None:
        _crash_if_armed(Path(_FOLDER, name))
    elif name == _NAME:
        _crash()


def _crash_if_armed(file: Path) -> None:
    try:
        file.unlink()  # only one process succeeds
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
