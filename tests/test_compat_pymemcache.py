"""KetamaHasher puts keys where libmemcached does, and works in HashClient on real servers."""

from contextlib import ExitStack, contextmanager

import pytest
from pymemcache.client.hash import HashClient

from rota.compat.pymemcache import KetamaHasher
from tests.servers import free_ports, program, running

SERVERS = ["10.0.0.1:11211", "10.0.0.2:11212", "10.0.0.3:11213"]
# The numbers of the servers of key-0, key-1 and so on, by libmemcached 1.1.4 (Debian's 1.1.4-1):
# memcached_generate_hash with MEMCACHED_BEHAVIOR_KETAMA_WEIGHTED set.
LIBMEMCACHED = {
    "221110201122221210000001112221122202102010200001220122022222": SERVERS,
    "101000100000111010001001010011011101111110010000010001011000": [
        "/run/a.sock",
        "10.0.0.2:11212",
    ],
}
KEYS = [f"key-{i}" for i in range(1000)]


def hasher_of(servers, cls=KetamaHasher):
    """Return a hasher with these servers."""
    hasher = cls()
    for server in servers:
        hasher.add_node(server)
    return hasher


def owners(hasher):
    """Return the server of every key."""
    return {key: hasher.get_node(key) for key in KEYS}


@pytest.mark.parametrize(("numbers", "servers"), LIBMEMCACHED.items())
def test_the_same_servers_as_libmemcached(numbers, servers):
    hasher = hasher_of(servers)
    found = [hasher.get_node(key) for key in KEYS[: len(numbers)]]
    assert found == [servers[int(digit)] for digit in numbers]


def test_the_order_of_servers_does_not_matter():
    assert owners(hasher_of(SERVERS)) == owners(hasher_of(SERVERS[::-1]))


def test_without_servers_there_is_none():
    hasher = KetamaHasher()
    assert hasher.get_node("key") is None
    hasher.add_node("a:1")
    assert hasher.get_node("key") == "a:1"
    hasher.remove_node("a:1")
    assert hasher.get_node("key") is None


def test_adding_twice_is_adding_once():
    hasher = hasher_of([*SERVERS, *SERVERS])
    assert hasher.nodes == SERVERS
    assert owners(hasher) == owners(hasher_of(SERVERS))
    hasher.remove_node(SERVERS[0])
    assert SERVERS[0] not in owners(hasher).values()


def test_removing_a_stranger_is_refused():
    with pytest.raises(ValueError, match="'b:2'"):
        hasher_of(["a:1"]).remove_node("b:2")


def test_text_and_bytes_are_one_key():
    hasher = hasher_of(SERVERS)
    for key in (*KEYS, "schlüssel"):
        assert hasher.get_node(key) == hasher.get_node(key.encode())


def test_only_keys_of_a_removed_server_move_and_come_back():
    hasher = hasher_of(SERVERS)
    before = owners(hasher)
    hasher.remove_node(SERVERS[1])
    after = owners(hasher)
    assert {key for key in KEYS if before[key] != after[key]} == {
        key for key in KEYS if before[key] == SERVERS[1]
    }
    hasher.add_node(SERVERS[1])
    assert owners(hasher) == before


def test_a_new_server_takes_its_share_and_nothing_else_moves():
    hasher = hasher_of(SERVERS)
    before = owners(hasher)
    hasher.add_node("10.0.0.4:11214")
    moved = [server for key, server in owners(hasher).items() if server != before[key]]
    assert set(moved) == {"10.0.0.4:11214"}
    assert 150 < len(moved) < 350  # a quarter is expected


def test_the_default_port_is_not_part_of_the_label():
    class WithPort(KetamaHasher):
        silent_port = None

    default, other = ["a:11211", "b:11211"], ["a:1", "b:1"]
    assert owners(hasher_of(default)) != owners(hasher_of(default, WithPort))
    assert owners(hasher_of(other)) == owners(hasher_of(other, WithPort))


@contextmanager
def memcached(n, folder):
    """Run n memcached servers; give the (host, port) of each, and what stops it."""
    path = program("memcached", "memcached")
    with ExitStack() as stack:
        stops = {}
        for port in free_ports(n):
            command = [path, "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-u", "nobody"]
            server = stack.enter_context(ExitStack())
            server.enter_context(running(command, port, folder / f"memcached-{port}.log"))
            stops["127.0.0.1", port] = server.close
        yield stops


def test_hash_client_on_real_servers(tmp_path):
    """1,000 keys on three servers; one dies, and the keys of the others are still found."""
    with memcached(3, tmp_path) as stops:
        client = HashClient(
            list(stops),
            hasher=KetamaHasher,
            ignore_exc=True,
            retry_attempts=0,
            default_noreply=False,
        )
        assert all(client.set(key, f"value of {key}") for key in KEYS)
        assert all(client.get(key) == f"value of {key}".encode() for key in KEYS)
        before = {key: client.hasher.get_node(key) for key in KEYS}
        assert set(before.values()) == {f"{host}:{port}" for host, port in stops}

        (host, port), stop = next(iter(stops.items()))
        dead = f"{host}:{port}"
        lost = {key for key, server in before.items() if server == dead}
        stop()
        while dead in client.hasher.nodes:  # first it finds itself cut off, then refused
            assert client.get(min(lost)) is None
        for key in KEYS:
            if key in lost:
                assert client.get(key) is None  # it has moved to a server that never saw it
                assert client.set(key, "again")
                assert client.get(key) == b"again"
            else:
                assert client.get(key) == f"value of {key}".encode()
        client.close()
