"""A running nginx and rota send every key to the same server."""

import random
import socket
from contextlib import closing
from http.client import HTTPConnection

import pytest

from tests.servers import free_ports, nginx

BACKEND = """
server {{
    {listens}
    keepalive_requests 1000000;
    location / {{ return 200 "{name}"; }}
}}"""

UPSTREAM = """
upstream {label} {{
    hash $arg_k consistent;
    {servers}
    keepalive 16;
}}"""

PROXY = """
server {{
    listen 127.0.0.1:{port};
    keepalive_requests 1000000;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    {locations}
}}"""


def has_ipv6():
    try:
        with closing(socket.socket(socket.AF_INET6)) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    """Run nginx before servers that answer with their name; give port and upstreams."""
    directory = tmp_path_factory.mktemp("nginx")
    port, local, zero, *ports = free_ports(9)
    plain = [f"127.0.0.1:{p}" for p in ports]
    listens = {name: [name] for name in plain}
    # What counts is the name as it is written, not the address it leads to.
    odd = {
        f"localhost:{local}": [f"127.0.0.1:{local}"],
        f"127.0.0.1:0{zero}": [f"127.0.0.1:{zero}"],
        f"unix:{directory}/a.sock": [f"unix:{directory}/a.sock"],
    }
    if has_ipv6():
        odd[f"localhost:{local}"].append(f"[::1]:{local}")
        (six,) = free_ports(1, "::1")
        odd[f"[::1]:{six}"] = [f"[::1]:{six}"]
    listens |= odd
    upstreams = {
        "equal": dict.fromkeys(plain, 1),
        "weighted": dict(zip(plain, (5, 1, 13, 1, 2, 7), strict=True)),
        "names": {**dict.fromkeys(odd, 1), plain[0]: 1},
    }
    config = [
        BACKEND.format(name=name, listens="\n    ".join(f"listen {listen};" for listen in own))
        for name, own in listens.items()
    ]
    for label, servers in upstreams.items():
        lines = (f"server {name} weight={weight};" for name, weight in servers.items())
        config.append(UPSTREAM.format(label=label, servers="\n    ".join(lines)))
    lines = (f"location /{label} {{ proxy_pass http://{label}; }}" for label in upstreams)
    config.append(PROXY.format(port=port, locations="\n    ".join(lines)))
    with nginx("\n".join(config), port, directory):
        yield port, upstreams


@pytest.mark.parametrize("label", ["equal", "weighted", "names"])
def test_the_same_server_for_every_key(proxy, impl, label):
    port, upstreams = proxy
    servers = upstreams[label]
    pick = impl.ConsistentHash(list(servers), list(servers.values()), points="nginx").pick
    rng = random.Random(1)
    keys = [f"user:{i}" for i in range(1000)]
    keys += [rng.randbytes(rng.randrange(1, 60)).hex() for _ in range(1000)]
    served = set()
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        for key in keys:
            connection.request("GET", f"/{label}?k={key}")
            answer = connection.getresponse()
            name = answer.read().decode()
            assert (answer.status, name) == (200, pick(key)), key
            served.add(name)
    assert served == set(servers)
