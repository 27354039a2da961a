"""Real servers for the tests: found or installed, started on loopback, always stopped."""

import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

PATH = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/usr/local/go/bin"]
)


def unavailable(reason: str) -> NoReturn:
    """Skip the test, or fail where the environment says CI=true."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def program(name: str, package: str) -> str:
    """Return the path of a program, from its Debian package if missing and we are root.

    Without it the test is skipped, and fails where the environment says CI=true.
    """
    if found := shutil.which(name, path=PATH):
        return found
    said = "not root, or no apt-get"
    if os.geteuid() == 0 and shutil.which("apt-get"):
        # Tests of the kernels and of the reference run at once, and apt alone.
        with open(Path(tempfile.gettempdir()) / "rota-tests-apt.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if shutil.which(name, path=PATH) is None:
                said = _install(package)
        if found := shutil.which(name, path=PATH):
            return found
    unavailable(f"no {name} here; on Debian or Ubuntu: apt-get install {package} ({said})")


def _install(package: str) -> str:
    said = ""
    for command in (["update"], ["install", "-y", "--no-install-recommends", package]):
        done = subprocess.run(
            ["apt-get", "-qq", *command],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said += done.stdout
    return said.strip()


def free_ports(n: int, host: str = "127.0.0.1") -> list[int]:
    """Return n ports of `host` that were free a moment ago."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as stack:
        ports = []
        for _ in range(n):
            listener = stack.enter_context(closing(socket.socket(family)))
            listener.bind((host, 0))
            ports.append(listener.getsockname()[1])
        return ports


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[None]:
    """Run a server that listens on a loopback port, from then until the end of the block."""
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _wait_for(server, port, log)
        yield
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_for(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    for _ in range(600):
        if server.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"{server.args!r} does not listen on {port}: {log.read_text()}")


@contextmanager
def nginx(http: str, port: int, directory: Path) -> Iterator[None]:
    """Run nginx with this `http` block, which listens on `port`; all it writes to `directory`."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    config = directory / "nginx.conf"
    config.write_text(
        "\n".join(
            [
                "daemon off;",
                "master_process off;",  # one process: who stops it has stopped all
                "pid nginx.pid;",
                "error_log stderr;",
                "events {}",
                "http {",
                "access_log off;",
                *(f"{kind}_temp_path {kind};" for kind in kinds),
                http,
                "}",
            ]
        )
    )
    command = [program("nginx", "nginx"), "-p", str(directory), "-c", str(config)]
    with running(command, port, directory / "nginx.log"):
        yield
