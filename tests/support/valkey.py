"""A Valkey of a test's own that refuses on demand: out of memory, a replica, loading, without permission and so on."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

import redis

from embedded.process import Process
from embedded.valkey import Valkey

_MORE: Final = """
enable-debug-command local
repl-diskless-load disabled
"""


_loading: list[object] = []


class RefusingValkey(Valkey):
    """The embedded server; `refuse` has it answer with an error until `accept`."""

    def create_process(self) -> Process:
        """Write the configuration with what the tests need besides."""
        process = super().create_process()
        with (self.folder / "valkey.conf").open("a") as config:
            config.write(_MORE)
        return process

    def client(self) -> "redis.Redis":
        """Return a connection of the test's own."""
        return redis.Redis.from_url(self.url(), socket_timeout=60)

    def refuse(self, prefix: str) -> None:
        """Have clients be answered with this error from now on."""
        with self.client() as admin:
            _REFUSE[prefix](admin, self.folder)

    def accept(self, prefix: str) -> None:
        """Serve clients again; wait until all data are loaded."""
        with self.client() as admin:
            while admin.info("persistence")["loading"]:
                pass
            for command in _ACCEPT[prefix]:
                admin.execute_command(*command.split())

    def push(self, queue: str, entry: bytes) -> None:
        """Put an entry into a queue, message or not."""
        with self.client() as admin:
            admin.lpush(queue, entry)


def wake(task: str, *args: object) -> bytes:
    """Return a message as Celery puts it into a queue."""
    return envelope(json.dumps([list(args), {}, {}]), task=task)


def envelope(body: str, **headers: object) -> bytes:
    """Return a message of kombu with any body and headers."""
    info = {"exchange": "quick", "routing_key": "quick"}
    properties = {"delivery_tag": str(uuid.uuid4()), "delivery_info": info, "correlation_id": "c", "priority": 0}
    given = {"lang": "py", "id": str(uuid.uuid4()), "argsrepr": "()", "kwargsrepr": "{}", "root_id": None, **headers}
    message = {"body": body, "content-type": "application/json", "content-encoding": "utf-8"}
    return json.dumps({**message, "headers": given, "properties": properties}).encode()


def _run_out_of_memory(admin: "redis.Redis", _folder: Path) -> None:
    with admin.pipeline() as pipe:  # the message and the limit at once: it is refused to whoever takes the message
        pipe.lpush("quick", wake("moorage.sweep", "none"))
        pipe.config_set("maxmemory", 1)
        pipe.execute()


def _fail_to_save(admin: "redis.Redis", folder: Path) -> None:
    (folder / "dump.rdb").unlink(missing_ok=True)
    (folder / "dump.rdb").mkdir()  # a snapshot cannot be renamed to it
    admin.config_set("save", "3600 1")
    admin.lpush("nobody", "x")
    admin.bgsave()
    while admin.info("persistence")["rdb_bgsave_in_progress"]:
        pass


def _load(admin: "redis.Redis", _folder: Path) -> None:
    """Load its data for twelve seconds, from the moment at which all clients lose their connections."""
    admin.execute_command("DEBUG", "POPULATE", "12000")
    admin.config_set("key-load-delay", 1000)  # microseconds a key
    admin.config_set("loading-process-events-interval-bytes", 1024)
    connection = admin.connection_pool.get_connection()
    connection.send_packed_command(
        connection.pack_commands([("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"), ("DEBUG", "RELOAD")])
    )
    _loading.append(connection)  # open until the answer, which comes when all is loaded


def _commands(*commands: str) -> Callable[["redis.Redis", Path], None]:
    def run(admin: "redis.Redis", _folder: Path) -> None:
        for command in commands:
            admin.execute_command(*command.split())

    return run


_REFUSE: Final[dict[str, Callable[["redis.Redis", Path], None]]] = {
    "NOREPLICAS": _commands("CONFIG SET min-replicas-to-write 1"),
    "NOPERM": _commands("ACL SETUSER default -brpop -lpush"),
    "OOM": _run_out_of_memory,
    "READONLY": _commands("REPLICAOF 127.0.0.1 1"),
    "MASTERDOWN": _commands("CONFIG SET replica-serve-stale-data no", "REPLICAOF 127.0.0.1 1"),
    "LOADING": _load,
    "MISCONF": _fail_to_save,
    "WRONGTYPE": _commands("DEL quick", "SET quick text"),
}
_ACCEPT: Final = {
    "NOREPLICAS": ("CONFIG SET min-replicas-to-write 0",),
    "NOPERM": ("ACL SETUSER default +@all",),
    "OOM": ("CONFIG SET maxmemory 0",),
    "READONLY": ("REPLICAOF NO ONE",),
    "MASTERDOWN": ("REPLICAOF NO ONE", "CONFIG SET replica-serve-stale-data yes"),
    "MISCONF": ("CONFIG SET stop-writes-on-bgsave-error no",),
    "LOADING": ("CONFIG SET key-load-delay 0", "FLUSHALL"),
    "WRONGTYPE": ("DEL quick",),
}
REFUSALS: Final = tuple(_REFUSE)
