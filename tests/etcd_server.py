"""Real etcds for the tests, on loopback: one, or a cluster; killed, frozen, emptied, restarted.

What they are asked for here goes by urllib, not by the client that is tested.
"""

import json
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.servers import free_ports, program

KITEX = "kitex/registry-etcd"


def kitex(address: str, weight: int = 10, **more: object) -> str:
    """Return what Kitex writes of an instance."""
    return json.dumps({"network": "tcp", "address": address, "weight": weight, "tags": None} | more)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Return when a condition holds; fail when it still does not after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not in {seconds} s: {what}")
        time.sleep(0.02)


def _text(value: str | bytes) -> str:
    return b64encode(value if isinstance(value, bytes) else value.encode()).decode()


def _range(prefix: str) -> dict[str, str]:
    first = prefix.encode()
    return {"key": _text(first), "range_end": _text(first[:-1] + bytes([first[-1] + 1]))}


class Etcd:
    """One member. Its ports and its data stay the same through `kill` and `start`."""

    def __init__(
        self,
        directory: Path,
        name: str = "one",
        peers: dict[str, str] | None = None,
        ports: list[int] | None = None,
        options: list[str] | None = None,
        scheme: str = "http",
    ) -> None:
        self.directory = directory
        self.name = name
        port, peer = ports or free_ports(2)
        self.url = f"{scheme}://127.0.0.1:{port}"
        peer_url = f"http://127.0.0.1:{peer}"
        self._members = peers or {name: peer_url}
        self._command = [
            program("etcd", "etcd-server"),
            f"--name={name}",
            f"--data-dir={directory / 'data'}",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            "--initial-cluster=" + ",".join(f"{n}={url}" for n, url in self._members.items()),
            "--heartbeat-interval=50",
            "--election-timeout=500",
            *(options or []),
        ]
        self._context = ssl._create_unverified_context() if scheme == "https" else None
        self._process: subprocess.Popen[bytes] | None = None
        self.token: str | None = None
        self.patience = 20.0  # seconds for `ask`

    def launch(self) -> None:
        """Start it, without waiting until it answers."""
        self.directory.mkdir(exist_ok=True)
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def start(self) -> None:
        """Start it; returns when it answers."""
        self.launch()
        self.wait()

    def wait(self) -> None:
        """Return when it answers."""
        wait_for(self.is_well, f"etcd answers: {self.directory / 'log'}")

    def is_well(self) -> bool:
        """Whether it answers, with a majority behind it."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"etcd has ended: {(self.directory / 'log').read_text()[-3000:]}")
        try:
            request = urllib.request.Request(self.url + "/health")
            with urllib.request.urlopen(request, timeout=2, context=self._context) as answer:
                return json.load(answer)["health"] == "true"
        except OSError:
            return False

    def kill(self) -> None:
        """Kill it, as by kill -9; it may be dead already."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def freeze(self) -> None:
        """Have it say nothing any more, with its connections open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def revive(self, waits: bool = True) -> None:
        """Have it run again, whatever was done to it."""
        if self._process is None:
            self.launch()
        self.thaw()
        if waits:
            self.wait()

    def wipe(self) -> None:
        """Take its data away; it must be dead."""
        assert self._process is None
        shutil.rmtree(self.directory / "data")

    def ask(self, path: str, **query: object) -> dict:
        """Return what it answers; RuntimeError where it refuses."""
        headers = {"Authorization": self.token} if self.token else {}
        request = urllib.request.Request(
            f"{self.url}/v3/{path}", json.dumps(query).encode(), headers
        )
        try:
            with urllib.request.urlopen(
                request, timeout=self.patience, context=self._context
            ) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(error.read().decode()) from error

    def put(self, key: str | bytes, value: str | bytes, lease: int = 0) -> int:
        """Write a key; returns the revision."""
        said = self.ask("kv/put", key=_text(key), value=_text(value), lease=str(lease))
        return int(said["header"]["revision"])

    def delete(self, key: str) -> None:
        """Delete a key."""
        self.ask("kv/deleterange", key=_text(key))

    def delete_all(self, prefix: str) -> None:
        """Delete all keys with a prefix."""
        self.ask("kv/deleterange", **_range(prefix))

    def txn(self, puts: dict[str, str], deletions: list[str]) -> None:
        """Write and delete different keys, all at one revision."""
        self.ask(
            "kv/txn",
            success=[
                *({"request_put": {"key": _text(k), "value": _text(v)}} for k, v in puts.items()),
                *({"request_delete_range": {"key": _text(k)}} for k in deletions),
            ],
        )

    def entries(self, prefix: str) -> dict[str, str]:
        """Return the keys with a prefix, and their values."""
        found = self.ask("kv/range", **_range(prefix)).get("kvs", [])
        return {b64decode(e["key"]).decode(): b64decode(e["value"]).decode() for e in found}

    def lease_of(self, key: str) -> int:
        """Return the lease of a key."""
        return int(self.ask("kv/range", key=_text(key))["kvs"][0].get("lease", 0))

    def leases(self) -> list[int]:
        """Return all leases."""
        return [int(lease["ID"]) for lease in self.ask("lease/leases").get("leases", [])]

    def compact(self) -> None:
        """Forget all revisions before the one of now."""
        self.ask("kv/compaction", revision=str(self.put("compacted", "")), physical=True)

    def is_leader(self) -> bool:
        """Whether it leads its cluster."""
        status = self.ask("maintenance/status")
        return status.get("leader") == status["header"]["member_id"]


@contextmanager
def etcd(directory: Path, **options: object) -> Iterator[Etcd]:
    """Give a member alone, which runs, and is stopped at the end of the block."""
    member = Etcd(directory, **options)
    try:
        member.start()
        yield member
    finally:
        member.kill()


@contextmanager
def cluster(directory: Path, n: int = 3) -> Iterator[list[Etcd]]:
    """Give a cluster of n members that run, and are stopped at the end of the block."""
    ports = free_ports(2 * n)
    peers = {f"m{i}": f"http://127.0.0.1:{ports[n + i]}" for i in range(n)}
    with ExitStack() as stack:
        members = []
        for i, name in enumerate(peers):
            own = [ports[i], ports[n + i]]
            member = Etcd(directory / name, name, peers=peers, ports=own)
            stack.callback(member.kill)
            member.launch()
            members.append(member)
        for member in members:
            member.wait()
        yield members


class Wire:
    """A TCP connection to a member that can be cut, while the member lives; at `url`."""

    def __init__(self, member: Etcd) -> None:
        scheme, _, to = member.url.partition("://")
        host, _, port = to.rpartition(":")
        self._to = (host, int(port))
        self._at = ("127.0.0.1", *free_ports(1))
        self.url = f"{scheme}://127.0.0.1:{self._at[1]}"
        self._listener: socket.socket | None = None
        self._open: list[list[socket.socket]] = []
        self._hushed: set[int] = set()

    def mend(self) -> None:
        """Take connections, from now on."""
        self._listener = socket.create_server(self._at)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Break all connections, and take none; it may be cut already."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for pair in list(self._open):
            _hang_up(pair)

    def hush(self) -> None:
        """Let nothing through any more on the connections of now; they stay open."""
        self._hushed.update(map(id, self._open))

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near:
            try:
                far = socket.create_connection(self._to, timeout=10)
            except OSError:
                return
            far.settimeout(None)
            with far:
                pair = [near, far]
                self._open.append(pair)
                back = threading.Thread(target=self._pump, args=(pair, far, near), daemon=True)
                back.start()
                self._pump(pair, near, far)
                back.join()
                self._open.remove(pair)
                self._hushed.discard(id(pair))

    def _pump(self, pair: list[socket.socket], source: socket.socket, to: socket.socket) -> None:
        try:
            while chunk := source.recv(65536):
                if id(pair) not in self._hushed:
                    to.sendall(chunk)
        except OSError:
            pass
        _hang_up(pair)


def _hang_up(pair: list[socket.socket]) -> None:
    for end in pair:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def wire(member: Etcd) -> Iterator[Wire]:
    """Give a wire to a member that lets everything through, until the end of the block."""
    wire = Wire(member)
    wire.mend()
    try:
        yield wire
    finally:
        wire.cut()
        wait_for(lambda: not wire._open, "the wire is down")
