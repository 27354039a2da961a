"""Real gRPC servers for the tests, in processes of their own: each logs every call it receives.

    with fleet(tmp_path, 3) as servers:
        servers[0].kill()

The service takes and gives bytes. A request is words: ``id=7 sleep=0.5`` (see `_OPTIONS`); all that
a server receives is in the log of its process, also what it does not answer.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from pathlib import Path

SERVICE = "rota.test.Echo"

ROOT = Path(__file__).parent.parent


def method(name: str) -> str:
    """Return the full name of a method of the service."""
    return f"/{SERVICE}/{name}"


class Server:
    """A gRPC server in a process of its own.

    Parameters
    ----------
    name : str
        It is in all its answers.
    directory : Path
        Of its log.
    address : str
        "127.0.0.1:port", or "unix:path".
    options : sequence of str
        Of the command line: --cert, --key.
    """

    def __init__(
        self, name: str, directory: Path, address: str, options: tuple[str, ...] = ()
    ) -> None:
        self.name = name
        self.address = address
        self.log = directory / f"{name}.log"
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, at the same address as before; returns when it listens."""
        command = [sys.executable, str(Path(__file__)), self.name, self.address, str(self.log)]
        self._process = subprocess.Popen(
            [*command, *self._options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{command!r} did not start")

    def kill(self) -> None:
        """End it at once, in the middle of anything."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in peace: calls under way are ended, new ones refused."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Stop the process: its connections stay, and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def received(self) -> list[str]:
        """Return what it has received, in order: "Method request" of each."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def _end(self, number: int) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(number)
        if number != signal.SIGKILL:
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
            self._process = None


@contextmanager
def fleet(directory: Path, n: int, *options: str, names: str = "abcdef") -> Iterator[list[Server]]:
    """Run n servers; they are gone at the end of the block."""
    with ExitStack() as stack:
        servers = []
        for name in names[:n]:
            address = f"127.0.0.1:{free_port()}"
            servers.append(Server(name, directory, address, options))
            stack.callback(servers[-1].kill)
        yield servers


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


# -- the process of a server ----------------------------------------------------------------------


def parse(request: bytes) -> dict[str, str]:
    """Return the options of a request.

    sleep=seconds       before the answer
    fail=STATUS         the answer is this status
    on=name             the above hold for this server alone
    die=1               the process ends, in the middle of the call
    pushback=ms         with fail: what goes into the trailing metadata
    n=count             of responses, where there are many; fail comes after half of them
    """
    words = [word.partition("=") for word in request.decode().split()]
    return {key: value for key, _, value in words}


def main() -> None:
    """Serve."""
    import grpc
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

    parser = argparse.ArgumentParser()
    for name in ("name", "address", "log"):
        parser.add_argument(name)
    for option in ("--cert", "--key"):
        parser.add_argument(option)
    said = parser.parse_args()
    log = os.open(said.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    me = said.name.encode()

    def received(name: str, request: bytes) -> None:
        os.write(log, f"{name} {request.decode()}\n".encode())

    def act(request: bytes, context: grpc.ServicerContext) -> dict[str, str]:
        options = parse(request)
        if options.get("on", said.name) != said.name:
            return {}
        if "die" in options:
            os._exit(1)
        time.sleep(float(options.get("sleep", 0)))
        return options

    def fail(options: dict[str, str], context: grpc.ServicerContext) -> None:
        if "fail" in options:
            if "pushback" in options:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", options["pushback"]),))
            words = options.get("words", "as-asked").replace("_", " ")
            context.abort(grpc.StatusCode[options["fail"]], words)

    def begin(context: grpc.ServicerContext) -> None:
        context.send_initial_metadata((("server", said.name),))
        context.set_trailing_metadata((("trailer", said.name), ("pid", str(os.getpid()))))

    def unary(request: bytes, context: grpc.ServicerContext) -> bytes:
        received("Unary", request)
        options = act(request, context)
        fail(options, context)
        begin(context)
        metadata = {key: str(value) for key, value in context.invocation_metadata()}
        encoding = metadata.get("grpc-encoding", "identity")
        word = metadata.get("word", "")
        return b" ".join([me, request, encoding.encode(), word.encode()])

    def many(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        received("Many", request)
        options = act(request, context)
        n = int(parse(request).get("n", 3))
        begin(context)
        for k in range(n):
            if k == n // 2:
                fail(options, context)
            yield me + b" %d" % k

    def gather(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        received("Gather", b"begin")
        found = []
        for request in requests:
            received("Gather", request)
            found.append(request)
            fail(act(request, context), context)
        begin(context)
        return b" ".join([me, *found])

    def chat(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        begin(context)
        received("Chat", b"begin")
        for request in requests:
            received("Chat", request)
            fail(act(request, context), context)
            yield me + b" " + request
        received("Chat", b"end")

    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Many": grpc.unary_stream_rpc_method_handler(many),
        "Gather": grpc.stream_unary_rpc_method_handler(gather),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    server = grpc.server(futures.ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    servicer = health.HealthServicer()
    servicer.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    services = (health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, SERVICE)
    reflection.enable_server_reflection(services, server)
    if said.cert:
        pair = Path(said.key).read_bytes(), Path(said.cert).read_bytes()
        server.add_secure_port(said.address, grpc.ssl_server_credentials([pair]))
    else:
        server.add_insecure_port(said.address)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    server.start()
    print("ready", flush=True)
    ended.wait()
    server.stop(5).wait()


if __name__ == "__main__":
    main()
