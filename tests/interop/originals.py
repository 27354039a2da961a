"""The Go originals: servers of Kratos, and registrations of Kitex, for tests; always stopped.

The two programs in kratos/ and kitex/ are built once for each state of their sources, into the
cache of the home folder. What is Go's own keeps to Go's own caches.
"""

import fcntl
import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.etcd_server import Etcd, wait_for
from tests.servers import program, unavailable

SOURCES = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rota" / "interop"
TIMEOUT = 60.0  # seconds for a program to begin, to end, or to say something


@functools.cache
def built(name: str) -> Path:
    """Return the program of kratos/ or kitex/, built where it is not.

    Where Go is missing, too old, or cannot download the modules, the test is skipped, and fails
    where the environment says CI=true. Sources that do not compile are an error.
    """
    sources = SOURCES / name
    state = hashlib.sha256(f"{sys.platform} {platform.machine()}".encode())
    for file in ("main.go", "go.mod", "go.sum"):
        state.update((sources / file).read_bytes())
    binary = CACHE / f"{name}-{state.hexdigest()[:16]}"
    if binary.exists():
        return binary
    go = program("go", "golang-go")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:  # tests of kernels and of reference run at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            done = _go(go, sources, "mod", "download")
            if done.returncode:
                unavailable(f"{go} gets no modules for {sources}: {done.stderr}")
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                made = Path(folder) / name
                options = ("-buildvcs=false", "-trimpath", "-ldflags=-s -w")
                done = _go(go, sources, "build", *options, "-o", str(made), ".")
                if done.returncode:
                    raise RuntimeError(f"{sources} does not compile: {done.stderr}")
                made.rename(binary)
    return binary


def _go(go: str, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # No C compiler is needed, and nothing is written into the folder.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    return subprocess.run(
        [go, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True,
    )  # fmt: skip


class Original:
    """A program that runs and has registered itself.

    Attributes
    ----------
    said : dict
        What it has told of itself: "id", "version", "http" and "grpc" (each an address) of a
        server of Kratos, "address" of an instance of Kitex.
    """

    def __init__(self, command: list[str], directory: Path, environment: Mapping[str, str]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._log = directory / "log"
        output = directory / "output"
        with output.open("wb") as out, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=log,
                env={**os.environ, **environment},
            )  # fmt: skip

        def has_spoken() -> bool:
            if self._process.poll() is not None:
                raise RuntimeError(f"{command} has ended: {self._log.read_text()}")
            return output.read_text().endswith("\n")

        try:
            wait_for(has_spoken, f"{command} is registered: {self._log}", TIMEOUT)
        except BaseException:
            self.kill()
            raise
        self.said: dict[str, str] = json.loads(output.read_text())

    def stop(self) -> None:
        """Have it end as it should (SIGTERM), and fail where it does not."""
        self._process.terminate()
        code = self._process.wait(TIMEOUT)
        if code:
            raise RuntimeError(f"{self._process.args!r} ended with {code}: {self._log.read_text()}")

    def kill(self) -> None:
        """Kill it, as by kill -9; it may be dead already."""
        self._process.kill()
        self._process.wait()


@contextmanager
def kratos(
    etcd: Etcd,
    directory: Path,
    name: str,
    instance_id: str,
    version: str = "",
    metadata: Mapping[str, str] | None = None,
    ttl: int = 60,
    always: str = "",
) -> Iterator[Original]:
    """Run a server of Kratos, HTTP and gRPC, until the end of the block.

    Parameters
    ----------
    etcd : Etcd
    directory : Path
        Of all servers: what it prints is in a folder of its id in there.
    name, instance_id, version, metadata
        What it registers.
    ttl : int, seconds
        Of its lease.
    always : str
        "slow-250ms", "fail-503": how it treats each request, whatever it is for.
    """
    command = [
        str(built("kratos")), "-etcd", etcd.url, "-name", name, "-id", instance_id,
        "-version", version, "-ttl", f"{ttl}s", "-always", always,
        *_pairs("-metadata", metadata or {}),
    ]  # fmt: skip
    yield from _running(command, directory / instance_id, {})


@contextmanager
def kitex(
    etcd: Etcd,
    directory: Path,
    name: str,
    weight: int = 10,
    tags: Mapping[str, str] | None = None,
    ttl: int = 60,
) -> Iterator[Original]:
    """Run an instance that Kitex' registry-etcd registers, until the end of the block.

    What it prints is in the directory, which is its own.
    """
    command = [
        str(built("kitex")), "-etcd", etcd.url, "-name", name, "-weight", str(weight),
        *_pairs("-tag", tags or {}),
    ]  # fmt: skip
    yield from _running(command, directory, {"KITEX_ETCD_REGISTRY_LEASE_TTL": str(ttl)})


def _running(
    command: list[str], directory: Path, environment: Mapping[str, str]
) -> Iterator[Original]:
    original = Original(command, directory, environment)
    try:
        yield original
    finally:
        original.kill()


def kratos_finds(etcd: Etcd, name: str) -> list[dict[str, Any]]:
    """Return the instances that Kratos' GetService finds, as Kratos writes them in JSON."""
    (found,) = _said("kratos", "-etcd", etcd.url, "-name", name, "-resolve")
    return found


def kratos_calls(
    etcd: Etcd, name: str, path: str, n: int, version: str = ""
) -> list[dict[str, Any]]:
    """Return the answers to n requests of Kratos' HTTP client, one after another.

    It finds the instances in etcd; those of `version` alone, if one is given.
    """
    return _said(
        "kratos", "-etcd", etcd.url, "-name", name, "-call", str(n), "-path", path,
        "-version", version,
    )  # fmt: skip


def kitex_finds(etcd: Etcd, name: str, *tags: str) -> list[dict[str, Any]]:
    """Return what Kitex' resolver finds: network, address, weight, and of the tags these."""
    wanted = _pairs("-tag", dict.fromkeys(tags, ""))
    (found,) = _said("kitex", "-etcd", etcd.url, "-name", name, "-resolve", *wanted)
    return found


def _said(name: str, *arguments: str) -> list[Any]:
    done = subprocess.run(
        [built(name), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=TIMEOUT,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{done.args!r} failed: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines() if line]


def _pairs(flag: str, values: Mapping[str, str]) -> list[str]:
    return [part for key, value in values.items() for part in (flag, f"{key}={value}")]
