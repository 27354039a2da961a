"""What a balanced client of httpx adds to a request: beside httpx's own, to one real server.

    python -m bench.clients_httpx

Both clients are in one process, and take turns request by request over connections that are
kept, so that the machine's noise is the same for both. The server is a process of its own on
loopback, which answers at once.
"""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from rota.clients.httpx import AsyncClient, Client
from rota.discovery import StaticResolver
from rota.selector import p2c, wrr

N_CALLS = 4000
N_FIRST = 200  # not counted

Times = tuple[list[float], list[float]]

_SERVER = """
import asyncio

ANSWER = b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nContent-Type: text/plain\\r\\n\\r\\nok"

class Answers(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.read = transport, b""
    def data_received(self, data):
        *requests, self.read = (self.read + data).split(b"\\r\\n\\r\\n")
        self.transport.write(ANSWER * len(requests))

async def main():
    server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


@contextmanager
def http_server() -> Iterator[str]:
    """Run a server in a process of its own; gives its address."""
    process = subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def summary(times: Times) -> dict[str, float]:
    """Return p50 and p99 of both, microseconds, and what is added: the median, of plain's p50."""
    found = {}
    for name, each in zip(("plain", "balanced"), times, strict=True):
        quantiles = statistics.quantiles(each[N_FIRST:], n=100)
        found[f"{name}_p50"] = quantiles[49] * 1e6
        found[f"{name}_p99"] = quantiles[98] * 1e6
    added = [b - a for a, b in zip(times[0][N_FIRST:], times[1][N_FIRST:], strict=True)]
    found["added"] = statistics.median(added) * 1e6 / found["plain_p50"]
    return found


def turns(n_calls: int) -> Iterator[int]:
    """Go through whose turn it is, 0 or 1: each comes first as often."""
    for k in range(2 * (n_calls + N_FIRST)):
        yield k & 1 ^ (k >> 1 & 1)


def measure(n_calls: int = N_CALLS) -> dict[str, dict[str, float]]:
    """Return the `summary` of each kind of client."""
    with http_server() as address:
        resolver = StaticResolver({"orders": [address]})
        found = {}
        for name, builder in (("wrr", wrr), ("p2c", p2c)):
            found[f"threads, {name}"] = _in_threads(address, resolver, builder(), n_calls)
            found[f"asyncio, {name}"] = asyncio.run(
                _on_asyncio(address, resolver, builder(), n_calls)
            )
        return found


def _in_threads(
    address: str, resolver: StaticResolver, builder: object, n: int
) -> dict[str, float]:
    with (
        httpx.Client(base_url=f"http://{address}") as plain,
        Client("discovery:///orders", resolver, balancer=builder) as balanced,
    ):
        clients, times = (plain, balanced), ([], [])
        for which in turns(n):
            begin = time.perf_counter()
            clients[which].get("/orders/7")
            times[which].append(time.perf_counter() - begin)
        return summary(times)


async def _on_asyncio(
    address: str, resolver: StaticResolver, builder: object, n: int
) -> dict[str, float]:
    async with (
        httpx.AsyncClient(base_url=f"http://{address}") as plain,
        AsyncClient("discovery:///orders", resolver, balancer=builder) as balanced,
    ):
        clients, times = (plain, balanced), ([], [])
        for which in turns(n):
            begin = time.perf_counter()
            await clients[which].get("/orders/7")
            times[which].append(time.perf_counter() - begin)
        return summary(times)


def show(title: str, found: dict[str, dict[str, float]]) -> None:
    """Print a table."""
    print(f"{title:24}{'plain p50':>10}{'rota p50':>10}{'plain p99':>11}{'rota p99':>10}   added")
    for kind, figures in found.items():
        print(
            f"{kind:24}{figures['plain_p50']:10.0f}{figures['balanced_p50']:10.0f}"
            f"{figures['plain_p99']:11.0f}{figures['balanced_p99']:10.0f}"
            f"   {figures['added']:+.1%}"
        )


if __name__ == "__main__":
    show("httpx, us", measure())
