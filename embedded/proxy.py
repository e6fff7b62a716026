"""A TCP proxy on loopback that can reset and stall connections, like a faulty network between server and clients."""

import asyncio
import contextlib
import socket
import ssl
import threading
from typing import Final, Self

_CHUNK_BYTES: Final = 64 * 1024
_START_SECONDS: Final = 10.0


class Proxy:
    """
    Forwards a free port of 127.0.0.1 to another one, in its own thread. All methods are thread-safe.

    Args:
        port: the target; the server need not be running.
        tls: for clients of its port; the target is reached without.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._target, self._tls = port, tls
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"proxy-{port}", daemon=True)
        self._stopped: asyncio.Event | None = None

    def start(self) -> Self:
        self._thread.start()
        self._started.wait(_START_SECONDS)
        return self

    def stop(self) -> None:
        self._call(self._end)
        self._thread.join(_START_SECONDS)

    def reset_connections(self) -> None:
        """Close every open connection with RST."""
        self._call(self._reset)

    def stall(self) -> None:
        """Forward no bytes until `resume`; new connections are accepted and wait, too."""
        self._call(self._flowing.clear)

    def resume(self) -> None:
        self._call(self._flowing.set)

    def _call(self, callback: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(callback)  # type: ignore[arg-type]  # any callable without arguments

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._flowing.set()
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self._handle_connection, "127.0.0.1", 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopped.wait()
        self._flowing.set()
        # Accept no more. `close` at once would leak the connections that asyncio is accepting: it drops them.
        self._loop.remove_reader(server.sockets[0].fileno())
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            self._reset()
            _, waiting = await asyncio.wait(tasks, timeout=0.2)
            for task in waiting:  # for a handshake
                task.cancel()
        server.close()
        await asyncio.sleep(0)  # transports close their sockets a turn after `abort`

    def _end(self) -> None:
        if self._stopped is not None:
            self._stopped.set()

    def _reset(self) -> None:
        for writer in list(self._writers):
            with contextlib.suppress(OSError, AttributeError):
                linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # l_onoff 1, l_linger 0: close sends RST
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    async def _handle_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sides = [writer]
        self._writers.add(writer)
        try:
            target_reader, target = await asyncio.open_connection("127.0.0.1", self._target)
            sides.append(target)
            self._writers.add(target)
            await asyncio.gather(self._forward(reader, target), self._forward(target_reader, writer))
        except OSError:
            writer.transport.abort()
        finally:
            for side in sides:
                if self._stopped is not None and self._stopped.is_set():
                    side.transport.abort()  # `close` would send the rest first
                side.close()
                self._writers.discard(side)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(_CHUNK_BYTES):
                await self._flowing.wait()
                writer.write(chunk)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
        except (OSError, RuntimeError):
            writer.transport.abort()
