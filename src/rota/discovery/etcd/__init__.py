"""Services in etcd, as Kitex and Kratos write them there. Needs aiohttp: `rota[etcd]`."""

try:
    import aiohttp as _aiohttp  # noqa: F401
except ImportError as error:
    raise ImportError('rota.discovery.etcd needs aiohttp: pip install "rota[etcd]"') from error

from rota.discovery.etcd.client import EtcdError, EtcdUnavailable
from rota.discovery.etcd.layouts import KitexLayout, KratosLayout, Layout
from rota.discovery.etcd.registry import AsyncRegistration, EtcdRegistry, Registration
from rota.discovery.etcd.resolver import EtcdResolver

__all__ = [
    "AsyncRegistration",
    "EtcdError",
    "EtcdRegistry",
    "EtcdResolver",
    "EtcdUnavailable",
    "KitexLayout",
    "KratosLayout",
    "Layout",
    "Registration",
]
