"""The servers of the demo: each a process of its own."""

import subprocess
import sys
from types import TracebackType

from rota.demo.server import HOST
from rota.discovery import Instance


class Fleet:
    """Starts servers, slows and kills them, and leaves none behind. A context manager."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        self._by_address: dict[str, subprocess.Popen[str]] = {}

    def start(self, *plans: tuple[int, float]) -> list[Instance]:
        """Start one server for each (weight, delay in seconds); returns when all listen.

        About 0.2 s of processor time each.

        Raises
        ------
        RuntimeError
            A server ended before it listened; its own message is on standard error.
        """
        processes = []
        for _, delay in plans:
            process = subprocess.Popen(
                [sys.executable, "-m", "rota.demo.server", str(delay)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # the terminal's Ctrl-C is for the parent alone
            )
            self._processes.append(process)
            processes.append(process)
        instances = []
        for process, (weight, _) in zip(processes, plans, strict=True):
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            if not port:
                raise RuntimeError(f"a server ended with code {process.wait()} before it listened")
            address = f"{HOST}:{port}"
            self._by_address[address] = process
            instances.append(Instance(address, weight, scheme="http"))
        return instances

    def set_delay(self, address: str, delay: float) -> None:
        """Have the server at `address` take `delay` seconds for each request from now on."""
        stdin = self._by_address[address].stdin
        assert stdin is not None
        stdin.write(f"{delay}\n")
        stdin.flush()

    def kill(self, address: str) -> None:
        """End the server at `address` in the middle of whatever it does (SIGKILL)."""
        self._by_address[address].kill()

    def close(self) -> None:
        """End all servers; returns when they are gone."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.communicate()

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
