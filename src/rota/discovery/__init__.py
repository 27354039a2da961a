"""Which copies a service has: instances, results, what changes, and where they are found.

`rota.discovery.dns`, which needs dnspython, and `rota.discovery.etcd`, which needs aiohttp,
are imported by themselves.
"""

from rota.discovery.file import FileRegistry, FileResolver
from rota.discovery.instance import Instance
from rota.discovery.memory import MemoryRegistry
from rota.discovery.resolver import Resolver, SynthesizedResolver, WatchingResolver
from rota.discovery.result import Change, Result, diff
from rota.discovery.stabilizer import UpdatePolicy
from rota.discovery.static import StaticResolver

__all__ = [
    "Change",
    "FileRegistry",
    "FileResolver",
    "Instance",
    "MemoryRegistry",
    "Resolver",
    "Result",
    "StaticResolver",
    "SynthesizedResolver",
    "UpdatePolicy",
    "WatchingResolver",
    "diff",
]
