"""What the balancing middleware adds to a request of aiohttp's client, to one real server.

    python -m bench.clients_aiohttp

As `bench.clients_httpx`, whose server and method it has.
"""

import asyncio
import time

import aiohttp

from bench.clients_httpx import N_CALLS, http_server, show, summary, turns
from rota.clients.aiohttp import client_session
from rota.discovery import StaticResolver
from rota.selector import p2c, wrr


def measure(n_calls: int = N_CALLS) -> dict[str, dict[str, float]]:
    """Return the `summary` of each kind of balancer."""
    with http_server() as address:
        resolver = StaticResolver({"orders": [address]})
        return {
            f"asyncio, {name}": asyncio.run(_measure(address, resolver, builder(), n_calls))
            for name, builder in (("wrr", wrr), ("p2c", p2c))
        }


async def _measure(
    address: str, resolver: StaticResolver, builder: object, n: int
) -> dict[str, float]:
    async with (
        aiohttp.ClientSession(f"http://{address}") as plain,
        client_session("discovery:///orders", resolver, balancer=builder) as balanced,
    ):
        sessions, times = (plain, balanced), ([], [])
        for which in turns(n):
            begin = time.perf_counter()
            async with sessions[which].get("/orders/7") as response:
                await response.read()
            times[which].append(time.perf_counter() - begin)
        return summary(times)


if __name__ == "__main__":
    show("aiohttp, us", measure())
