"""A command of moorage whose Python processes are forked: `python -m tests.support.forking_command drill`."""

from cli.main import main
from embedded.process import Process
from tests.support import fork_server

if __name__ == "__main__":
    fork_server.start_forked()
    Process.spawn = staticmethod(fork_server.spawn)  # type: ignore[assignment]
    main()
