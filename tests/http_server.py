"""One HTTP/1.1 server for the tests of clients, a program of its own: see `http_servers`.

What a server does with a request is said by the request itself. By the path:

    /ws             a websocket that sends back what it gets, until it gets a Close
    anything else   an answer in JSON of what came in: method, target, host, headers, body, by (the
                    server's name), sni (the name that TLS was asked for), peer (the other end)

By the query, where `at` is missing or has the server's name (names apart by commas):

    status=503      with this status
    retry_after=2   with this header Retry-After
    location=/x     with this header Location
    set_cookie=a=b  with this header Set-Cookie
    wait=0.2        after so many seconds
    chunks=5        in so many parts of 1 kB, chunked
    pause=0.05      and so many seconds before each but the first
    size=1000000    of so many bytes
    reset=1         not at all: the connection is reset, the request having been read
    break=1         the connection is closed in the middle of the body
    close=1         with Connection: close

Each request is written down before it is answered, in a file that outlives the server.
"""

import asyncio
import base64
import hashlib
import json
import os
import signal
import socket
import ssl
import struct
import sys
from contextlib import suppress
from urllib.parse import parse_qs, unquote

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
PART = b"x" * 1024


class Server:
    """One server; `options` as `Member` has them."""

    def __init__(self, options: dict) -> None:
        self.options = options
        self.name = options["name"]
        self.log = os.open(options["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.is_ending = False
        self.idle: set[asyncio.StreamWriter] = set()
        self.tasks: set[asyncio.Task] = set()

    async def run(self) -> None:
        """Serve until SIGTERM, and then until all requests have been answered.

        It ends at once when its standard input does, as it does when its parent is gone.
        """
        options = self.options
        context = None
        if options["certificate"]:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*options["certificate"])
            context.sni_callback = self.note_name
        ending = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, ending.set)
        loop.add_reader(sys.stdin, os._exit, 0)
        if options["path"]:
            with suppress(FileNotFoundError):
                os.unlink(options["path"])
            server = await asyncio.start_unix_server(self.accept, options["path"], ssl=context)
        else:
            server = await asyncio.start_server(
                self.accept, "127.0.0.1", options["port"], ssl=context, backlog=512
            )
        print("ready", flush=True)
        await ending.wait()
        self.is_ending = True
        server.close()
        for writer in list(self.idle):
            writer.close()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=10)

    def note_name(self, wrapped: ssl.SSLObject, name: str | None, context: object) -> None:
        """Keep the name that a client asks for."""
        wrapped.asked = name

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection."""
        task = asyncio.current_task()
        self.tasks.add(task)
        try:
            while await self.answer_one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.tasks.discard(task)
            self.idle.discard(writer)
            writer.close()

    async def answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; False: the connection ends."""
        self.idle.add(writer)
        head = await reader.readuntil(b"\r\n\r\n")
        self.idle.discard(writer)
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {}
        for line in lines[:-2]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await self.read_body(reader, headers)
        path, _, query = target.partition("?")
        said = {name: values[-1] for name, values in parse_qs(query).items()}
        if self.name not in said.get("at", self.name).split(","):
            said = {}
        tls = writer.get_extra_info("ssl_object")
        entry = {
            "by": self.name,
            "method": method,
            "target": target,
            "host": headers.get("host"),
            "headers": headers,
            "body": body.decode("latin-1"),
            "sni": getattr(tls, "asked", None),
            "peer": str(writer.get_extra_info("peername")),
        }
        os.write(self.log, json.dumps(entry).encode() + b"\n")
        if "wait" in said:
            await asyncio.sleep(float(said["wait"]))
        if "reset" in said:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        if unquote(path) == "/ws" and "upgrade" in headers.get("connection", "").lower():
            await self.echo_frames(reader, writer, headers)
            return False
        return await self.write_answer(writer, method, said, entry)

    async def read_body(self, reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
        """Read the body of a request."""
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return await reader.readexactly(int(headers.get("content-length", "0")))
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
        return body

    async def write_answer(
        self, writer: asyncio.StreamWriter, method: str, said: dict[str, str], entry: dict
    ) -> bool:
        """Answer as the query says."""
        status = int(said.get("status", 200))
        is_last = self.is_ending or "close" in said
        lines = [f"HTTP/1.1 {status} Status", "Content-Type: application/json"]
        said_headers = ("Retry-After", "Location", "Set-Cookie")
        keys = {name: name.lower().replace("-", "_") for name in said_headers}
        lines += [f"{name}: {said[key]}" for name, key in keys.items() if key in said]
        if is_last:
            lines.append("Connection: close")
        n_chunks = int(said.get("chunks", 0))
        body = b"y" * int(said["size"]) if "size" in said else json.dumps(entry).encode()
        if status == 204 or status == 304:
            body = b""
        elif n_chunks:
            lines.append("Transfer-Encoding: chunked")
        else:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        if method == "HEAD":
            writer.write(head)
        elif "break" in said:
            writer.write(head + body[: len(body) // 2])
            await writer.drain()
            return False
        elif n_chunks:
            writer.write(head)
            for index in range(n_chunks):
                if index and "pause" in said:
                    await asyncio.sleep(float(said["pause"]))
                writer.write(b"%x\r\n%b\r\n" % (len(PART), PART))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        else:
            writer.write(head + body)
        await writer.drain()
        return not is_last

    async def echo_frames(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: dict[str, str]
    ) -> None:
        """Be a websocket (RFC 6455) until the client closes it."""
        key = headers["sec-websocket-key"].encode()
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Accept: {accept}", "", ""]
        writer.write("\r\n".join(lines).encode())
        while True:
            first, length = await reader.readexactly(2)
            length &= 0x7F
            if length == 126:
                length = int.from_bytes(await reader.readexactly(2), "big")
            mask = await reader.readexactly(4)
            data = await reader.readexactly(length)
            text = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))
            size = bytes([length]) if length < 126 else b"\x7e" + length.to_bytes(2, "big")
            writer.write(bytes([first]) + size + text)
            await writer.drain()
            if first & 0x0F == 8:
                return


if __name__ == "__main__":
    asyncio.run(Server(json.loads(sys.argv[1])).run())
