"""Balanced channels of gRPC: each call goes to the instance whose turn it is.

    channel = insecure_channel("discovery:///orders", resolver, balancer=p2c())
    stub = OrdersStub(channel)

Generated stubs, interceptors and all else that takes a `grpc.Channel` take these. `aio` has the
same for asyncio. Read `subchannels.py` and `calls.py` first, then `channel.py`.
"""

try:
    import grpc as _grpc  # noqa: F401
except ImportError as error:
    raise ImportError("rota.clients.grpc needs grpcio: pip install 'rota[grpc]'") from error

from rota.clients.grpc import aio
from rota.clients.grpc.channel import Channel, insecure_channel, secure_channel
from rota.clients.grpc.errors import CallError, DeadlineError, NoInstance

__all__ = [
    "CallError",
    "Channel",
    "DeadlineError",
    "NoInstance",
    "aio",
    "insecure_channel",
    "secure_channel",
]
