"""Which copies a service has: instances, results, what changes, and where they are kept."""

from rota.discovery.instance import Instance
from rota.discovery.memory import MemoryRegistry
from rota.discovery.result import Change, Result, diff

__all__ = ["Change", "Instance", "MemoryRegistry", "Result", "diff"]
