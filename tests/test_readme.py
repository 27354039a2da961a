"""Every Python example of README.md and docs/ runs, and prints what it says."""

import doctest
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from rota import Instance
from rota.discovery import StaticResolver
from tests import etcd_server, http_servers

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def examples_of(page):
    """Return the text between ```python fences, by the line it begins at."""
    blocks, start = {}, None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if start is None and line.strip() == "```python":
            start, block = number, []
        elif start is not None and line.strip() == "```":
            blocks[start], start = "\n".join(block) + "\n", None
        elif start is not None:
            block.append(line)
    return blocks


# What the examples of a page find in their namespace, besides: fixtures, by the name there.
NEEDED = {
    "README.md": {"ETCD": "greeters"},
    "clients.md": {"RESOLVER": "resolver"},
    "clients_grpc.md": {"RESOLVER": "rpc_resolver"},
    "clients_httpx.md": {"RESOLVER": "resolver"},
    "etcd.md": {"ETCD": "etcd"},
}


@pytest.fixture
def etcd(tmp_path):
    """The URL of a real etcd."""
    with etcd_server.etcd(tmp_path / "etcd") as server:
        yield server.url


@pytest.fixture
def resolver(tmp_path):
    """Knows three real servers of HTTP as "helloworld", of versions 1, 1 and 2."""
    with http_servers.fleet(3, tmp_path) as members:
        instances = [
            Instance(member.address, service="helloworld", version=version)
            for member, version in zip(members, "112", strict=True)
        ]
        yield StaticResolver({"helloworld": instances})


@pytest.fixture
def rpc_resolver():
    """Knows two real servers of gRPC as "helloworld", of versions 1 and 2."""
    with health_server() as one, health_server() as two:
        instances = [Instance(one, version="1"), Instance(two, version="2")]
        yield StaticResolver({"helloworld": instances})


@pytest.fixture
def greeters(tmp_path):
    """The URL of an etcd with two servers, of HTTP and of gRPC, as Kratos and Kitex write them."""
    with (
        etcd_server.etcd(tmp_path / "etcd") as server,
        http_servers.fleet(2, tmp_path) as members,
        health_server() as one,
        health_server() as two,
    ):
        for member, rpc, version in zip(members, (one, two), "12", strict=True):
            entry = {
                "id": member.name,
                "name": "helloworld",
                "version": version,
                "metadata": {"weight": "10"},
                "endpoints": [f"http://{member.address}", f"grpc://{rpc}"],
            }
            server.put(f"/microservices/helloworld/{member.name}", json.dumps(entry))
            server.put(f"{etcd_server.KITEX}/helloworld/{rpc}", etcd_server.kitex(rpc, 10))
        yield server.url


@contextmanager
def health_server():
    """Run a gRPC server that is asked for its health; gives its address."""
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page, request):
    """The examples of a page run one after another, in one namespace."""
    names = {"__name__": "example"}
    for name, fixture in NEEDED.get(page.name, {}).items():
        names[name] = request.getfixturevalue(fixture)
    n_examples = 0
    for line, text in examples_of(page).items():
        n_examples += 1
        if ">>>" not in text:
            exec(compile(text, f"{page.name}:{line}", "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), line)
        test.globs = names
        report = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        results = runner.run(test, out=report.append, clear_globs=False)
        assert results.failed == 0, "".join(report)
        assert results.attempted > 0
    assert n_examples > 0
