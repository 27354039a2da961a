"""Builds the peers: Go's and Rust's from their published modules, Python's two of Cython.

What is built lies in bench/peers/.built, and is built again when its sources have changed; the
tools see to that themselves. A peer that cannot be built is named with the reason, and the
others go on without it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.extension import compiled

FOLDER = Path(__file__).parent
BUILT = FOLDER / ".built"
USUAL = ("/usr/local/go/bin", str(Path.home() / ".cargo" / "bin"))
FROM_C, FLOOR = FOLDER / "from_c.pyx", FOLDER.parent / "floor.pyx"


class UnavailableError(Exception):
    """A peer cannot be built here; says why."""


def tool(name: str, package: str) -> str:
    """Return the path of a program; `package` says what to install where it is missing.

    It is looked for on the PATH and where Go's and Rust's own installers put it.
    """
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *USUAL]))
    if path is None:
        raise UnavailableError(f"no {name} here: install {package}")
    return path


def run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Run a command to its end; UnavailableError with its last words where it fails."""
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UnavailableError(f"{' '.join(command)}: " + " / ".join(said[-3:]))


def python_peer() -> list[str]:
    """Return the command of the peer in Python, once its two modules are compiled."""
    modules = [compiled(source, BUILT) for source in (FROM_C, FLOOR)]
    return [sys.executable, "-m", "bench.peers.python_peer", *map(str, modules)]


def go_peer() -> list[str]:
    """Return the command of the peer in Go, once it is built."""
    go, binary = tool("go", "Go, of https://go.dev/dl"), BUILT / "go_peer"
    options = ["-buildvcs=false", "-trimpath", "-mod=readonly"]
    environment = {"CGO_ENABLED": "0", "GOWORK": "off"}
    run([go, "build", *options, "-o", str(binary), "."], FOLDER / "go", environment)
    return [str(binary)]


def rust_peer() -> list[str]:
    """Return the command of the peer in Rust, once it is built."""
    cargo, target = tool("cargo", "Rust, of https://rustup.rs"), BUILT / "rust"
    run([cargo, "build", "--release", "--locked", "--target-dir", str(target)], FOLDER / "rust", {})
    return [str(target / "release" / "rota-peer-rust")]


PEERS: dict[str, Callable[[], list[str]]] = {
    "python": python_peer,
    "go": go_peer,
    "rust": rust_peer,
}


def built() -> tuple[dict[str, list[str]], dict[str, str]]:
    """Build what can be built: (the commands by peer, why the others are missing)."""
    BUILT.mkdir(exist_ok=True)
    commands, missing = {}, {}
    for name, build in PEERS.items():
        print(f"building the peer in {name}", file=sys.stderr, flush=True)
        try:
            commands[name] = build()
        except UnavailableError as error:
            missing[name] = str(error)
    return commands, missing
