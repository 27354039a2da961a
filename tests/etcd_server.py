"""Real etcds for the tests, on loopback: one, or a cluster; killed, frozen, emptied, restarted.

What they are asked for here goes by urllib, not by the client that is tested.
"""

import json
import shutil
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.servers import free_ports, program


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
            "--heartbeat-interval=100",
            "--election-timeout=1000",
            *(options or []),
        ]
        self._context = ssl._create_unverified_context() if scheme == "https" else None
        self._process: subprocess.Popen[bytes] | None = None
        self.token: str | None = None

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
            with urllib.request.urlopen(request, timeout=20, context=self._context) as answer:
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
