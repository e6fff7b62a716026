"""
A server of output files on loopback: `/NAME.jpeg`, `.png` or `.webp` is one of two pictures, chosen by the name.

A program of its own, so that its work is not that of the measured processes. Prints its port.
"""

import asyncio
import sys
import zlib

import uvloop

from bench import pictures


def build_responses(formats: list[str]) -> dict[str, list[bytes]]:
    """Return the complete HTTP responses by format."""
    responses: dict[str, list[bytes]] = {}
    for format_ in formats:
        files = pictures.load(format_)
        head = "HTTP/1.1 200 OK\r\nContent-Type: image/{}\r\nContent-Length: {}\r\n\r\n"
        responses[format_] = [head.format(format_, len(file)).encode() + file for file in files]
    return responses


class Connection(asyncio.Protocol):
    """One persistent connection: answers each GET."""

    def __init__(self, responses: dict[str, list[bytes]]) -> None:
        self.responses = responses
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            request, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            path = request.split(b" ", 2)[1]
            files = self.responses.get(path.rpartition(b".")[2].decode())
            missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
            self.transport.write(files[zlib.crc32(path) % pictures.VARIANTS] if files else missing)


async def serve(port: int, formats: list[str]) -> None:
    responses = build_responses(formats)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(responses), "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2:] or list(pictures.FORMATS)))
