"""Where the demo publishes its servers, and where its balancers find them: a file, or etcd."""

import shutil
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from rota.demo.server import HOST
from rota.discovery import FileRegistry, FileResolver, Instance, Resolver

FILE, ETCD = "file", "etcd"

POLL = 0.02  # seconds between two looks at the file
PATIENCE = 30.0  # seconds for etcd to listen
TTL = 5  # seconds for which etcd knows of a server whose demo has died


# Ends etcd when this process is no more, however that came about.
KEEPER = 'exec 3<&0; "$@" < /dev/null & cat <&3 > /dev/null; kill -9 $!'


class Unavailable(RuntimeError):
    """There is no such registry here."""


class Registry(ABC):
    """Servers are published here, and found by its `resolver`."""

    resolver: Resolver

    @abstractmethod
    def publish(self, service: str, *instances: Instance) -> None:
        """Add servers, or replace those of the same address."""

    @abstractmethod
    def withdraw(self, service: str, address: str) -> None:
        """Take a server away, if it is there."""


class InFile(Registry):
    """A file in `folder`."""

    def __init__(self, folder: str) -> None:
        path = Path(folder) / "services.json"
        self._registry = FileRegistry(path)
        self._registry.replace("none yet", ())  # who resolves finds a file
        self.resolver = FileResolver(path, poll=POLL)

    def publish(self, service: str, *instances: Instance) -> None:
        """Add servers, or replace those of the same address."""
        self._registry.publish(service, *instances)

    def withdraw(self, service: str, address: str) -> None:
        """Take a server away."""
        self._registry.withdraw(service, address)


class InEtcd(Registry):
    """An etcd that listens at `endpoints`, in Kitex's layout. A context manager."""

    def __init__(self, endpoints: list[str]) -> None:
        try:
            from rota.discovery.etcd import EtcdRegistry, EtcdResolver, Registration
        except ImportError as error:
            raise Unavailable(str(error)) from error
        self._registry = EtcdRegistry(endpoints, ttl=TTL)
        self._registrations: dict[str, Registration] = {}
        self.endpoints = endpoints
        self.resolver = EtcdResolver(endpoints)

    def publish(self, service: str, *instances: Instance) -> None:
        """Register servers, or tell of what has changed of those of the same address."""
        for instance in instances:
            known = self._registrations.get(instance.address)
            if known is not None:
                known.update(instance)
            else:
                registration = self._registry.register(service, instance)
                self._registrations[instance.address] = registration

    def withdraw(self, service: str, address: str) -> None:
        """Take a server away."""
        registration = self._registrations.pop(address, None)
        if registration is not None:
            registration.close()

    def close(self) -> None:
        """Take all servers away."""
        self._registry.close()


@contextmanager
def opened(kind: str, endpoints: list[str] | None = None) -> Iterator[Registry]:
    """Give a registry of a kind, `FILE` or `ETCD`, until the end of the block.

    Parameters
    ----------
    endpoints : list of str, or None
        Of etcd. None: one is started, on free loopback ports, and stopped.

    Raises
    ------
    Unavailable
        There is no etcd to start; or `rota[etcd]` is not installed.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rota-demo-"))
        if kind == FILE:
            yield InFile(folder)
            return
        if endpoints is None:
            endpoints = [stack.enter_context(_etcd(folder))]
        yield stack.enter_context(closing(InEtcd(endpoints)))


@contextmanager
def _etcd(folder: str) -> Iterator[str]:
    program = shutil.which("etcd")
    if program is None:
        raise Unavailable(
            "there is no etcd to start; on Debian or Ubuntu: apt-get install etcd-server; "
            "--etcd URL takes one that runs"
        )
    ports = _free_ports(2)
    client, peer = (f"http://{HOST}:{port}" for port in ports)
    command = [
        "sh", "-c", KEEPER, "keeper", program, "--name=demo", f"--data-dir={folder}/etcd",
        f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=demo={peer}", "--log-level=error",
    ]  # fmt: skip
    with open(f"{folder}/etcd.log", "wb") as log:
        # In a session of its own: the terminal's Ctrl-C is for the demo alone.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_for(ports[0], f"{folder}/etcd.log")
        yield client
    finally:
        process.communicate()


def _wait_for(port: int, log: str) -> None:
    end = time.monotonic() + PATIENCE
    while not _listens(port):
        if time.monotonic() > end:
            said = Path(log).read_text()[-500:]
            raise Unavailable(f"etcd does not listen after {PATIENCE:g} s: {said}")
        time.sleep(0.02)


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port)).close()
    except OSError:
        return False
    return True


def _free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(n)]
        return [listener.getsockname()[1] for listener in listeners]
