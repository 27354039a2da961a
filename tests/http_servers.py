"""Real HTTP/1.1 servers for the tests of clients: processes of their own, on loopback.

    with fleet(3, tmp_path) as members:
        client.get(f"http://{members[0].address}/echo?status=503&at=s0")
        members[0].requests()

What one does with a request the request itself says: see `http_server`.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.servers import free_ports, program

PROGRAM = Path(__file__).parent / "http_server.py"


class Member:
    """One server of a fleet.

    Attributes
    ----------
    name : str
        "s0", "s1", ...
    address : str
        "127.0.0.1:port", or the path of a unix socket.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        port: int = 0,
        path: str = "",
        certificate: tuple[str, str] | None = None,
    ) -> None:
        self.name = name
        self.address = path or f"127.0.0.1:{port}"
        self._log = directory / f"{name}.requests"
        self._options = {
            "name": name,
            "log": str(self._log),
            "port": port,
            "path": path,
            "certificate": certificate,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns when it listens."""
        command = [sys.executable, "-S", "-E", str(PROGRAM), json.dumps(self._options)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        self._process.stdout.close()
        if said != b"ready\n":
            self.kill()
            raise RuntimeError(f"{self.name} does not listen on {self.address}")

    def kill(self) -> None:
        """End it at once (SIGKILL), whatever it is at."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process.stdin.close()
            self._process = None

    def stop(self) -> None:
        """End it when it has answered the requests that it has (SIGTERM)."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            finally:
                self.kill()

    def restart(self) -> None:
        """Stop it, and start it again where it was."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Stop its clock (SIGSTOP): it accepts connections, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def requests(self) -> list[dict]:
        """Return all requests that it has read, also before a restart, in their order."""
        try:
            lines = self._log.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def forget(self) -> None:
        """Have no requests."""
        with suppress(FileNotFoundError):
            os.truncate(self._log, 0)


@contextmanager
def fleet(
    n: int,
    directory: Path,
    *,
    network: str = "tcp",
    certificate: tuple[str, str] | None = None,
) -> Iterator[list[Member]]:
    """Run n servers, from then until the end of the block.

    Parameters
    ----------
    directory : Path
        Where they keep what they have read, and their unix sockets.
    network : str
        "tcp" or "unix".
    certificate : (str, str) or None
        The paths of a certificate and its key, for TLS; see `certificates`.
    """
    ports = free_ports(n) if network == "tcp" else [0] * n
    members = []
    with ExitStack() as stack:
        for index, port in enumerate(ports):
            name = f"s{index}"
            path = str(directory / f"{name}.sock") if network == "unix" else ""
            member = Member(name, directory, port=port, path=path, certificate=certificate)
            stack.callback(member.kill)
            member.start()
            members.append(member)
        yield members


def certificates(directory: Path, *names: str) -> tuple[str, tuple[str, str]]:
    """Make a CA and a certificate for these names; returns (CA, (certificate, key)), paths."""
    openssl = program("openssl", "openssl")
    ca, ca_key, key, request, certificate, extensions = (
        str(directory / name)
        for name in ("ca.pem", "ca.key", "server.key", "server.csr", "server.pem", "server.ext")
    )
    # Python 3.13 wants all that RFC 5280 does.
    usages = "keyUsage=critical,keyCertSign,cRLSign"
    said = [
        "subjectAltName=" + ",".join(f"DNS:{name}" for name in names),
        "basicConstraints=CA:FALSE",
        "keyUsage=critical,digitalSignature",
        "authorityKeyIdentifier=keyid",
    ]
    Path(extensions).write_text("\n".join(said) + "\n")
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for arguments in (
        [
            *("req", "-x509", *kind, "-keyout", ca_key, "-out", ca),
            *("-days", "2", "-subj", "/CN=CA", "-addext", usages),
        ],
        ["req", "-new", *kind, "-keyout", key, "-out", request, "-subj", f"/CN={names[0]}"],
        [
            *("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial"),
            *("-out", certificate, "-days", "2", "-extfile", extensions),
        ],
    ):
        subprocess.run([openssl, *arguments], check=True, capture_output=True)
    return ca, (certificate, key)
