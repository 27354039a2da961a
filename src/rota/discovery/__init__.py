"""Which copies a service has: instances, results, what changes, and where they are kept."""

from rota.discovery.instance import Instance
from rota.discovery.memory import MemoryRegistry
from rota.discovery.resolver import Resolver, SynthesizedResolver, WatchingResolver
from rota.discovery.result import Change, Result, diff
from rota.discovery.stabilizer import UpdatePolicy

__all__ = [
    "Change",
    "Instance",
    "MemoryRegistry",
    "Resolver",
    "Result",
    "SynthesizedResolver",
    "UpdatePolicy",
    "WatchingResolver",
    "diff",
]
