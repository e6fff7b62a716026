"""
Named crash points for tests, disabled unless MOORAGE_FAILPOINT is set.

`NAME` kills the process with SIGKILL when it reaches the point `NAME`. `@FOLDER` kills the process that reaches a point
with a file of that name in FOLDER, and removes the file: this arms a point for one crash while the processes run.
"""

import os
import signal
from pathlib import Path
from typing import Final

_SPEC: Final = os.environ.get("MOORAGE_FAILPOINT", "")


def failpoint(name: str) -> None:
    if name == _SPEC or (_SPEC.startswith("@") and _disarm(Path(_SPEC[1:], name))):
        os.kill(os.getpid(), signal.SIGKILL)


def _disarm(file: Path) -> bool:
    try:
        file.unlink()  # only one process succeeds
    except FileNotFoundError:
        return False
    return True
