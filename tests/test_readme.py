"""Every Python example of README.md and docs/ runs, and prints what it says."""

import doctest
from pathlib import Path

import pytest

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


# What the examples of a page find in their namespace, besides: fixtures.
NEEDED = {"etcd.md": "ETCD", "clients.md": "RESOLVER", "clients_httpx.md": "RESOLVER"}


@pytest.fixture
def ETCD(tmp_path):
    """The URL of a real etcd."""
    with etcd_server.etcd(tmp_path / "etcd") as server:
        yield server.url


@pytest.fixture
def RESOLVER(tmp_path):
    """Knows three real servers of HTTP as "helloworld", of versions 1, 1 and 2."""
    with http_servers.fleet(3, tmp_path) as members:
        instances = [
            Instance(member.address, service="helloworld", version=version)
            for member, version in zip(members, "112", strict=True)
        ]
        yield StaticResolver({"helloworld": instances})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page, request):
    """The examples of a page run one after another, in one namespace."""
    names = {"__name__": "example"}
    if needed := NEEDED.get(page.name):
        names[needed] = request.getfixturevalue(needed)
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
