"""Balanced clients: HTTP and gRPC that dial a service by its name, ``discovery:///name``.

    rota.clients.httpx      transports and clients for httpx, for threads and for asyncio
    rota.clients.aiohttp    a middleware for aiohttp's client
    rota.clients.grpc       channels for grpcio and grpc.aio

Each needs the extra of its name: ``pip install rota[httpx]``. They have in common whom they
ask (a resolver, or a factory), what decides (a balancer, filters, a key), when they try again (a
`RetryPolicy`), and what is said for some calls alone: `call_options`. A `SelectorBalancer` has a
factory that several clients share keep selectors.
"""

from rota.clients.balancing import SelectorBalancer
from rota.clients.options import call_options, cookie, header

__all__ = ["SelectorBalancer", "call_options", "cookie", "header"]
