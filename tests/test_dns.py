"""Services by DNS, asked of a real server: dnsmasq."""

import asyncio
import logging
import os
import pwd
import random
import signal
import socket
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, asynccontextmanager, contextmanager
from fractions import Fraction

import dns.message
import dns.rcode
import dns.rdatatype
import dns.resolver
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rota import Instance, Result
from rota.discovery import Resolver, WatchingResolver
from rota.discovery.dns import DnsResolver, _target, shares
from tests.servers import free_ports, program, running
from tests.watches import DEADLINE, addresses, changed, eventually, following, until, watching


class Server:
    """A dnsmasq on loopback: what it says is in options, and in a file of hosts."""

    def __init__(self, directory):
        self.directory = directory
        self.port = self._free_port()
        self.hosts = directory / "hosts"
        self.hosts.write_text("")
        self.pid = directory / "pid"
        self.is_running = False
        self._running = ExitStack()

    @staticmethod
    def _free_port():
        for _ in range(100):
            (port,) = free_ports(1)  # of TCP
            with socket.socket(type=socket.SOCK_DGRAM) as udp:
                try:
                    udp.bind(("127.0.0.1", port))
                except OSError:
                    continue
            return port
        raise RuntimeError("no port is free for both UDP and TCP")

    def start(self, *options):
        command = [
            program("dnsmasq", "dnsmasq-base"),
            "--keep-in-foreground",
            "--log-facility=-",
            "--conf-file=/dev/null",
            f"--port={self.port}",
            "--listen-address=127.0.0.1",
            "--bind-interfaces",
            "--no-resolv",
            "--no-hosts",
            f"--addn-hosts={self.hosts}",
            "--local=/test/",  # what it does not know there does not exist; elsewhere it refuses
            "--local-ttl=1",
            f"--user={pwd.getpwuid(os.geteuid()).pw_name}",
            f"--pid-file={self.pid}",
            *options,
        ]
        log = self.directory / "dnsmasq.log"
        self._running.enter_context(running(command, self.port, log))

        self.is_running = True

    def stop(self):
        self.is_running = False
        self._running.close()
        self.pid.unlink(missing_ok=True)

    def say(self, hosts):
        """Have it say other addresses: a mapping of names to them."""
        lines = [f"{ip} {name}\n" for name, ips in hosts.items() for ip in ips]
        new = self.hosts.with_suffix(".new")
        new.write_text("".join(lines))
        os.replace(new, self.hosts)
        if self.is_running:
            eventually(lambda: self.pid.exists() and self.pid.read_text())
            os.kill(int(self.pid.read_text()), signal.SIGHUP)

    def resolver(self, **options):
        options = {"min_ttl": 0.05, "lifetime": 5, **options}
        return DnsResolver(nameservers=["127.0.0.1"], port=self.port, **options)

    def resolve(self, desc, **options):
        return asyncio.run(self.resolver(**options).resolve(desc))


@contextmanager
def dnsmasq(directory, *options, hosts=None):
    server = Server(directory)
    server.say(hosts or {})
    server.start(*options)
    try:
        yield server
    finally:
        server.stop()


MANY = {"many.test": [f"10.1.{i // 256}.{i % 256}" for i in range(400)]}

HOSTS = {
    "both.test": ["10.0.0.2", "10.0.0.1", "fd00::2", "fd00::1"],
    "four.test": ["10.0.0.4"],
    "six.test": ["fd00::6"],
    "one.test": ["10.0.1.1"],
    "two.test": ["10.0.2.1", "10.0.2.2"],
    "three.test": ["10.0.3.1", "10.0.3.2", "fd00::3"],
}

SRV = {
    "weights": ["one.test,81,0,3", "two.test,82,0,2", "four.test,84,1,9"],
    "zeros": ["one.test,80,7,0", "four.test,80,7,5", "six.test,80,7,0"],
    "equal": ["one.test,80,1,0", "four.test,80,1,0"],
    "next": ["nobody.test,80,0,1", "none.test,80,1,1", "one.test,80,2,0", "four.test,80,3,0"],
    "twice": ["one.test,80,0,1", "alias.test,80,0,2", "one.test,81,0,4", "one.test,80,0,8"],
    "nobody": ["nobody.test,80,0,1"],
    "refused": ["one.test,80,0,1", "outside.example,80,0,1"],
    "later": ["one.test,80,0,1", "outside.example,80,1,1"],
    "many": ["many.test,80,0,1", "one.test,80,0,1"],
    "off": [],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One whose records do not change."""
    options = [
        f"--srv-host=_{name}._tcp.test,{record}"
        for name, records in SRV.items()
        for record in records
    ]
    options += ["--srv-host=_off._tcp.test", "--cname=alias.test,one.test"]
    options += ["--cname=chain.test,alias.test", "--txt-record=none.test,text"]
    options += ["--host-record=seven.test,10.0.0.7,7", "--cname=nine.test,seven.test,9"]
    options += ["--host-record=forty.test,10.0.0.40,40", "--srv-host=_ttl._tcp.test,forty.test,80"]
    directory = tmp_path_factory.mktemp("dns")
    with dnsmasq(directory, *options, hosts=HOSTS | MANY) as server:
        yield server


# Targets


@pytest.mark.parametrize(
    ("endpoint", "desc"),
    [
        ("users:80", "users:80"),
        ("dns:///Users.Example:080", "users.example:80"),
        ("dns:///users.example.:80", "users.example.:80"),
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("dns:///[FD00::0:1]:443", "[fd00::1]:443"),
        ("bücher.example:80", "xn--bcher-kva.example:80"),
        ("srv:///_http._tcp.Users.example", "_http._tcp.users.example"),
        ("dns:///_http._tcp.users", "_http._tcp.users"),
        ("_http._tcp.users.", "_http._tcp.users."),
        ("_own.users:80", "_own.users:80"),
    ],
)
def test_targets(endpoint, desc):
    resolver = DnsResolver()
    assert resolver.target(endpoint) == desc
    assert resolver.target(desc) == desc


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        ":80",
        "users",
        "dns:///users",
        "users:",
        "users:0",
        "users:65536",
        "users:8\N{DEVANAGARI DIGIT ZERO}",
        "users:-1",
        "users:http",
        "a:b:80",
        "::1:80",
        "[users]:80",
        "[127.0.0.1]:80",
        "[::1]",
        "@:80",
        ".:80",
        "a..b:80",
        "dns://8.8.8.8/users:80",
        "discovery:///users:80",
        "http://users:80",
        "x" * 64 + ":80",
        "srv:///users",
        "srv:///_http._tcp",
        "srv:///_http.tcp.users",
        "srv:///_http._tcp.users:80",
        "dns:///_http.users",
    ],
)
def test_what_is_no_target_is_refused(endpoint):
    resolver = DnsResolver()
    with pytest.raises(ValueError, match="endpoint"):
        resolver.target(endpoint)
    with pytest.raises(ValueError, match="endpoint"):
        asyncio.run(resolver.resolve(endpoint))
    with pytest.raises(ValueError, match="endpoint"):
        asyncio.run(following(resolver.watch(endpoint)))
    with pytest.raises(TypeError, match="endpoint"):
        resolver.target(endpoint.encode())


@given(st.text())
def test_any_text_is_a_target_for_good_or_is_refused(text):
    resolver = DnsResolver()
    for endpoint in (text, f"{text}:80", f"_a._b.{text}"):
        try:
            desc = resolver.target(endpoint)
        except ValueError:
            continue
        assert desc.isascii()
        assert resolver.target(desc) == desc


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"nameservers": "127.0.0.1"}, TypeError, "nameservers"),
        ({"nameservers": [5]}, TypeError, "nameservers"),
        ({"nameservers": ["localhost"]}, ValueError, "nameservers"),
        ({"nameservers": []}, ValueError, "nameservers"),
        ({"port": "53"}, TypeError, "port"),
        ({"port": 0}, ValueError, "port"),
        ({"lifetime": 0}, ValueError, "lifetime"),
        ({"lifetime": None}, TypeError, "lifetime"),
        ({"min_ttl": 0}, ValueError, "min_ttl"),
        ({"max_ttl": float("inf")}, ValueError, "max_ttl"),
        ({"max_ttl": float("nan")}, ValueError, "max_ttl"),
        ({"min_ttl": 31}, ValueError, "min_ttl must be <= max_ttl"),
        ({"types": []}, ValueError, "types"),
        ({"types": ["MX"]}, ValueError, "types"),
        ({"types": "AA"}, ValueError, "types"),
    ],
)
def test_bad_options_are_refused(options, error, name):
    with pytest.raises(error, match=name):
        DnsResolver(**options)


def test_the_interface():
    resolver = DnsResolver()
    assert isinstance(resolver, Resolver)
    assert isinstance(resolver, WatchingResolver)
    assert resolver.name == DnsResolver(min_ttl=2).name
    names = {
        DnsResolver(**options).name
        for options in ({}, {"nameservers": ["::1"]}, {"port": 54}, {"types": "A"})
    }
    assert len(names) == 4
    a, b = Result(True, "k", [Instance("a:1")]), Result(True, "k")
    assert resolver.diff("k", a, b).removed == (Instance("a:1"),)


def said_by(program):
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_without_dnspython():
    program = """
import sys
sys.modules["dns"] = None
import rota.discovery
try:
    import rota.discovery.dns
except ImportError as error:
    print(error)
"""
    assert said_by(program) == 'DnsResolver needs dnspython: pip install "rota[dns]"\n'


def test_rota_does_not_import_dnspython():
    assert said_by("import sys, rota, rota.discovery; print('dns' in sys.modules)") == "False\n"


# Addresses


def test_addresses_of_both_kinds_sorted(server):
    result = server.resolve("Both.test:80")
    assert result.cacheable
    assert result.cache_key == "both.test:80"
    assert addresses(result) == ["10.0.0.1:80", "10.0.0.2:80", "[fd00::1]:80", "[fd00::2]:80"]
    for instance in result.instances:
        assert instance.weight is None
        assert instance.tags == {"host": "both.test"}
        assert instance.service == "both.test"


def test_types_are_the_kinds_that_are_asked_for(server):
    assert addresses(server.resolve("both.test:80", types=["A"])) == ["10.0.0.1:80", "10.0.0.2:80"]
    assert addresses(server.resolve("both.test:80", types="AAAA")) == [
        "[fd00::1]:80",
        "[fd00::2]:80",
    ]
    assert server.resolve("four.test:80", types="AAAA").instances == ()


@pytest.mark.parametrize(
    ("name", "ip"),
    [
        ("four.test", "10.0.0.4"),
        ("six.test", "[fd00::6]"),
        ("alias.test", "10.0.1.1"),
        ("chain.test", "10.0.1.1"),
        ("four.test.", "10.0.0.4"),
    ],
)
def test_one_address(server, name, ip):
    (instance,) = server.resolve(f"{name}:80").instances
    assert instance.address == f"{ip}:80"
    assert instance.tag("host") == name.rstrip(".")


@pytest.mark.parametrize("name", ["nobody.test", "none.test"])
def test_nobody(server, name):
    """No such name; and one that has other records."""
    assert server.resolve(f"{name}:80") == Result(True, f"{name}:80")


def test_an_address_stands_for_itself():
    resolver = DnsResolver(nameservers=["127.0.0.1"], port=1)  # nobody is asked
    assert addresses(asyncio.run(resolver.resolve("127.0.0.1:80"))) == ["127.0.0.1:80"]
    assert addresses(asyncio.run(resolver.resolve("[::1]:80"))) == ["[::1]:80"]


def test_more_addresses_than_fit_into_a_packet(server):
    """Then the answer is asked for again, by TCP."""
    result = server.resolve("many.test:80")
    assert set(addresses(result)) == {f"{ip}:80" for ip in MANY["many.test"]}
    assert addresses(result) == sorted(addresses(result))


def test_a_refusal_is_an_error(server):
    with pytest.raises(OSError, match=r"outside\.example:80 cannot be looked up.*REFUSED"):
        server.resolve("outside.example:80")


def test_nobody_answers():
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        resolver = DnsResolver(
            nameservers=["127.0.0.1"], port=silent.getsockname()[1], lifetime=0.2
        )
        with pytest.raises(OSError, match=r"both\.test:80 cannot be looked up"):
            asyncio.run(resolver.resolve("both.test:80"))


@asynccontextmanager
async def scripted(rcodes, records):
    """What dnsmasq does not say: a server of this process, and what makes resolvers that ask it.

    `records` are lines of a zone file, by what is asked for, "name TYPE"; those under
    "authority" come with every answer.
    """
    asked = Counter()

    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, peer):
            query = dns.message.from_wire(data)
            question = query.question[0]
            what = f"{question.name.canonicalize()} {dns.rdatatype.to_text(question.rdtype)}"
            asked[what] += 1
            lines = list(records.get(what, ()))
            random.shuffle(lines)
            text = [";ANSWER", *lines, ";AUTHORITY", *records.get("authority", ()), ""]
            said = dns.message.from_text("\n".join(text))
            answer = dns.message.make_response(query)
            answer.set_rcode(rcodes.get(what, dns.rcode.NOERROR))
            answer.answer, answer.authority = said.answer, said.authority
            self.transport.sendto(answer.to_wire(), peer)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Server, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    try:
        yield (
            asked,
            lambda **options: DnsResolver(
                nameservers=["127.0.0.1"], port=port, lifetime=1.0, **options
            ),
        )
    finally:
        transport.close()


def test_one_kind_without_an_answer_is_an_error():
    """Half the addresses would pass for all."""

    async def main():
        rcodes = {"half.test. AAAA": dns.rcode.SERVFAIL}
        records = {"half.test. A": ["half.test. 60 IN A 10.0.0.1"]}
        async with scripted(rcodes, records) as (_, resolver):
            with pytest.raises(OSError, match="SERVFAIL"):
                await resolver().resolve("half.test:80")
            found = await resolver(types="A").resolve("half.test:80")
            assert addresses(found) == ["10.0.0.1:80"]
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_the_order_of_an_answer_makes_no_difference():
    async def main():
        records = {
            "s.test. A": [f"s.test. 60 IN A 10.0.0.{i}" for i in range(20)],
            "_s._tcp.test. SRV": [
                f"_s._tcp.test. 60 IN SRV {i % 2} {i} {80 + i % 3} {name}.test."
                for i in range(10)
                for name in ("s", "S")
            ],
        }
        async with scripted({}, records) as (asked, resolver):
            for desc in ("s.test:80", "_s._tcp.test"):
                one = await resolver().resolve(desc)
                for _ in range(5):
                    assert await resolver().resolve(desc) == one
            async with watching(resolver(min_ttl=0.01, max_ttl=0.01), "s.test:80") as watch:
                last = await following(watch)
                for _ in range(5):
                    assert await following(watch) is last
            assert asked["s.test. A"] >= 15

    asyncio.run(main())


def ttl_of(server, desc, **options):
    return asyncio.run(server.resolver(**options)._look(_target(desc)))[1]


@pytest.mark.parametrize(
    ("desc", "ttl"),
    [
        ("seven.test:80", 7),
        ("nine.test:80", 7),  # another name of it, which may be kept longer
        ("three.test:80", 1),
        ("_ttl._tcp.test", 1),
        ("forty.test:80", 30),  # as many as max_ttl
        ("nobody.test:80", 0.05),  # nothing says for how long: min_ttl
        ("127.0.0.1:80", 30),
    ],
)
def test_it_asks_again_when_the_first_of_the_records_has_run_out(server, desc, ttl):
    assert ttl_of(server, desc) == ttl
    assert ttl_of(server, desc, min_ttl=29) == max(29, ttl)
    assert ttl_of(server, desc, max_ttl=0.5) == min(0.5, ttl)


@pytest.mark.parametrize("rcode", ["NXDOMAIN", "NOERROR"])
def test_for_how_long_there_is_nothing(rcode):
    async def main():
        rcodes = {f"none.test. {type_}": dns.rcode.from_text(rcode) for type_ in ("A", "AAAA")}
        records = {"authority": ["test. 20 IN SOA ns.test. root.test. 1 3600 600 86400 9"]}
        async with scripted(rcodes, records) as (_, resolver):
            found, ttl = await resolver()._look(_target("none.test:80"))
            assert found.instances == ()
            assert ttl == 9

    asyncio.run(main())


def test_the_servers_of_the_system(server, monkeypatch):
    """And its search list, as a file says it that is read at each look."""
    config = server.directory / "resolv.conf"
    read = dns.resolver.BaseResolver.read_resolv_conf
    monkeypatch.setattr(
        dns.resolver.BaseResolver, "read_resolv_conf", lambda self, _: read(self, str(config))
    )
    resolver = DnsResolver(port=server.port)
    config.write_text("nameserver 127.0.0.1\nsearch nowhere.test test\n")
    result = asyncio.run(resolver.resolve("four:80"))
    assert addresses(result) == ["10.0.0.4:80"]
    assert result.cache_key == "four:80"
    with pytest.raises(OSError, match="REFUSED"):  # of a whole name there is no other
        asyncio.run(resolver.resolve("four.:80"))
    config.write_text("nameserver 127.0.0.1\n")
    assert asyncio.run(resolver.resolve("four.test:80")).instances
    config.unlink()
    with pytest.raises(OSError, match="cannot be looked up"):
        asyncio.run(resolver.resolve("four.test:80"))


# SRV


def found_by_srv(server, name):
    return {
        instance.address: (instance.weight, instance.tag("host"), instance.tag("priority"))
        for instance in server.resolve(f"srv:///_{name}._tcp.test").instances
    }


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (
            "weights",  # 3 : 2, and the 2 is shared by two addresses
            {
                "10.0.1.1:81": (6, "one.test", "0"),
                "10.0.2.1:82": (2, "two.test", "0"),
                "10.0.2.2:82": (2, "two.test", "0"),
            },
        ),
        (
            "zeros",  # 5 parts of 6, and one that two share
            {
                "10.0.1.1:80": (1, "one.test", "7"),
                "10.0.0.4:80": (10, "four.test", "7"),
                "[fd00::6]:80": (1, "six.test", "7"),
            },
        ),
        ("equal", {"10.0.1.1:80": (1, "one.test", "1"), "10.0.0.4:80": (1, "four.test", "1")}),
        ("next", {"10.0.1.1:80": (1, "one.test", "2")}),
        ("twice", {"10.0.1.1:80": (11, "alias.test", "0"), "10.0.1.1:81": (4, "one.test", "0")}),
        ("later", {"10.0.1.1:80": (1, "one.test", "0")}),  # who comes later is not asked for
        ("nobody", {}),
        ("off", {}),
        ("unknown", {}),
    ],
)
def test_srv(server, name, found):
    assert found_by_srv(server, name) == found


def test_srv_of_many_addresses(server):
    """Of which only as many come beside the answer as there is room for."""
    found = found_by_srv(server, "many")
    assert len(found) == 401
    assert Counter(weight for weight, _, _ in found.values()) == {1: 400, 400: 1}


def test_srv_where_an_address_cannot_be_had_is_an_error(server):
    with pytest.raises(OSError, match="REFUSED"):
        server.resolve("_refused._tcp.test")


def test_a_result_by_srv_says_whose_it_is(server):
    result = server.resolve("dns:///_weights._TCP.test")
    assert result.cache_key == "_weights._tcp.test"
    assert {instance.service for instance in result.instances} == {"_weights._tcp.test"}


SHARING = st.lists(st.tuples(st.integers(0, 65535), st.integers(1, 8)), min_size=1, max_size=9)


@given(SHARING)
def test_shares_are_those_of_rfc_2782(targets):
    """By its own procedure: numbers from 0 to the sum, those of weight 0 first, in any order."""
    total = sum(weight for weight, _ in targets)
    n_zeros = sum(not weight for weight, _ in targets)
    found = shares(targets)
    assert all(isinstance(share, int) and share > 0 for share in found)
    whole = sum(share * k for share, (_, k) in zip(found, targets, strict=True))
    for share, (weight, k) in zip(found, targets, strict=True):
        # Without any 0, the number 0 would be one more for the first, whoever that is.
        want = Fraction(weight, total + bool(n_zeros)) if weight else None
        want = Fraction(1, n_zeros * (total + 1)) if want is None else want
        assert Fraction(share * k, whole) == want


@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(1, 4000)), min_size=1, max_size=200))
def test_shares_fit_into_a_picker_whatever_the_numbers_of_addresses(targets):
    found = shares(targets)
    assert min(found) >= 1
    assert sum(share * k for share, (_, k) in zip(found, targets, strict=True)) < 2**63


def test_shares_stay_as_they_are_said_where_they_can():
    assert shares([(60, 1), (30, 1), (10, 1)]) == [60, 30, 10]
    assert shares([(60, 3), (30, 3)]) == [60, 30]
    assert shares([(0, 1), (0, 1)]) == [1, 1]


# Watches


def test_a_watch_follows_the_records(tmp_path):
    with dnsmasq(tmp_path, hosts={"a.test": ["10.0.0.1", "10.0.0.2"]}) as server:

        async def main():
            async with watching(server.resolver(max_ttl=0.1), "a.test:80") as watch:
                one = await following(watch)
                assert addresses(one) == ["10.0.0.1:80", "10.0.0.2:80"]
                for _ in range(3):
                    assert await following(watch) is one
                server.say({"a.test": ["10.0.0.3", "10.0.0.2"]})
                two = await changed(watch, one)
                assert addresses(two) == ["10.0.0.2:80", "10.0.0.3:80"]
                assert two.instances[0] is one.instances[1]
                server.say({})
                three = await changed(watch, two)
                assert three == Result(True, "a.test:80")
                assert await following(watch) is three
                server.say({"a.test": ["10.0.0.1"]})
                assert addresses(await changed(watch, three)) == ["10.0.0.1:80"]

        asyncio.run(main())


def test_a_watch_by_srv_follows_the_addresses_of_its_targets(tmp_path):
    with dnsmasq(tmp_path, *["--srv-host=_s._tcp.test,a.test,80,0,3"]) as server:

        async def main():
            async with watching(server.resolver(max_ttl=0.1), "srv:///_s._tcp.test") as watch:
                one = await following(watch)
                assert one == Result(True, "_s._tcp.test")
                server.say({"a.test": ["10.0.0.1"]})
                two = await changed(watch, one)
                assert [(i.address, i.weight) for i in two.instances] == [("10.0.0.1:80", 3)]
                server.say({"a.test": ["10.0.0.1", "fd00::1"]})
                three = await changed(watch, two)
                assert addresses(three) == ["10.0.0.1:80", "[fd00::1]:80"]

        asyncio.run(main())


def test_a_watch_waits_for_the_records_to_run_out(server):
    """The server says 1 s."""

    async def main():
        clock = asyncio.get_running_loop().time
        async with watching(server.resolver(), "one.test:80") as watch:
            last = await following(watch)
            begun = clock()
            assert await following(watch) is last
            assert clock() - begun > 0.5

    asyncio.run(main())


@pytest.mark.parametrize("first", [True, False])
def test_a_watch_asks_on_while_there_is_no_answer(tmp_path, caplog, first):
    """From the beginning, or after there was one: one warning, and one line when it is over."""
    caplog.set_level(logging.INFO, "rota")
    with dnsmasq(tmp_path, hosts={"a.test": ["10.0.0.1"]}) as server:

        async def main():
            resolver = server.resolver(min_ttl=0.02, max_ttl=0.05, lifetime=0.5)
            async with watching(resolver, "a.test:80") as watch:
                last = None if first else await following(watch)
                server.stop()
                task = asyncio.ensure_future(anext(watch))
                await until(lambda: caplog.records)
                if task.done():  # of an answer before that
                    assert task.result() is last
                    task = asyncio.ensure_future(anext(watch))
                await asyncio.sleep(0.3)
                assert not task.done()
                await asyncio.to_thread(server.start)
                again = await asyncio.wait_for(task, DEADLINE)
                assert last in (None, again)
                assert addresses(again) == ["10.0.0.1:80"]

        asyncio.run(main())
    told = [record for record in caplog.records if record.name.startswith("rota")]
    assert [record.levelname for record in told] == ["WARNING", "INFO"]
    assert all("a.test:80" in record.getMessage() for record in told)


@pytest.mark.parametrize("desc", ["many.test:80", "_weights._tcp.test", "silent"])
def test_nothing_is_left_of_a_watch_that_is_closed(server, desc):
    """Nor of one that is given up in the middle of a question."""

    async def main():
        n_files = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
        with socket.socket(type=socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            resolver, name = server.resolver(max_ttl=0.05), desc
            if desc == "silent":
                port = silent.getsockname()[1]
                resolver = DnsResolver(nameservers=["127.0.0.1"], port=port)
                name = "a.test:80"
            for i in range(10):
                watch = resolver.watch(name)
                if desc != "silent":
                    await following(watch)
                task = asyncio.ensure_future(anext(watch))
                await asyncio.sleep(0.005 * i)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await watch.aclose()
                assert len(asyncio.all_tasks()) == 1
        if sys.platform == "linux":
            await until(lambda: len(os.listdir("/proc/self/fd")) <= n_files)

    asyncio.run(main())
