"""What a balanced channel of gRPC adds to a unary call: beside grpcio's own, to one real server.

Both channels are in one process, and take turns call by call, so that the machine's noise is the
same for both. The server is a process of its own on loopback, and gives the request back.

    python -m bench.clients_grpc
"""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from rota import Instance, MemoryRegistry
from rota.clients.grpc import aio, insecure_channel
from rota.selector import p2c, wrr

N_CALLS = 4000
N_FIRST = 200  # not counted

METHOD = "/bench.Echo/Echo"

_SERVER = """
import sys
from concurrent.futures import ThreadPoolExecutor
import grpc

class Echo(grpc.GenericRpcHandler):
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    def service(self, details):
        return self.handler

server = grpc.server(ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((Echo(),))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
"""


@contextmanager
def echo_server() -> Iterator[str]:
    """Run a server in a process of its own; gives its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield f"127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def measure(n_calls: int = N_CALLS) -> dict[str, dict[str, float]]:
    """Return for each kind of call p50 and p99 of grpcio, and of rota, in microseconds.

    By kind: "plain_p50", "plain_p99", "balanced_p50", "balanced_p99", and "added", the median of
    what a call took more than the one beside it, as a fraction of "plain_p50".
    """
    with echo_server() as address:
        registry = MemoryRegistry()
        registry.publish("echo", Instance(address))
        found = {}
        for name, balancer in (("wrr", wrr), ("p2c", p2c)):
            found[f"sync, {name}"] = _sync(address, registry, balancer, n_calls)
            found[f"asyncio, {name}"] = asyncio.run(_async(address, registry, balancer, n_calls))
        return found


def _sync(address: str, registry: MemoryRegistry, balancer: object, n: int) -> dict[str, float]:
    with (
        grpc.insecure_channel(address) as plain,
        insecure_channel("discovery:///echo", registry, balancer=balancer()) as balanced,
    ):
        calls = plain.unary_unary(METHOD), balanced.unary_unary(METHOD)
        times: tuple[list[float], list[float]] = [], []
        for k in range(2 * (n + N_FIRST)):
            which = k & 1 ^ (k >> 1 & 1)  # each comes first as often
            begin = time.perf_counter()
            calls[which](b"hello", timeout=10)
            times[which].append(time.perf_counter() - begin)
        return _summary(times)


async def _async(
    address: str, registry: MemoryRegistry, balancer: object, n: int
) -> dict[str, float]:
    async with (
        grpc.aio.insecure_channel(address) as plain,
        aio.insecure_channel("discovery:///echo", registry, balancer=balancer()) as balanced,
    ):
        calls = plain.unary_unary(METHOD), balanced.unary_unary(METHOD)
        times: tuple[list[float], list[float]] = [], []
        for k in range(2 * (n + N_FIRST)):
            which = k & 1 ^ (k >> 1 & 1)
            begin = time.perf_counter()
            await calls[which](b"hello", timeout=10)
            times[which].append(time.perf_counter() - begin)
        return _summary(times)


def _summary(times: tuple[list[float], list[float]]) -> dict[str, float]:
    found = {}
    for name, each in zip(("plain", "balanced"), times, strict=True):
        quantiles = statistics.quantiles(each[N_FIRST:], n=100)
        found[f"{name}_p50"] = quantiles[49] * 1e6
        found[f"{name}_p99"] = quantiles[98] * 1e6
    added = [b - a for a, b in zip(times[0][N_FIRST:], times[1][N_FIRST:], strict=True)]
    found["added"] = statistics.median(added) * 1e6 / found["plain_p50"]
    return found


if __name__ == "__main__":
    print(
        f"{'unary call, us':16}{'grpcio p50':>12}{'rota p50':>10}{'grpcio p99':>12}{'rota p99':>10}"
    )
    for kind, figures in measure().items():
        print(
            f"{kind:16}{figures['plain_p50']:12.0f}{figures['balanced_p50']:10.0f}"
            f"{figures['plain_p99']:12.0f}{figures['balanced_p99']:10.0f}"
            f"   {figures['added']:+.1%}"
        )
