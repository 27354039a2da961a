"""The table of functions for C and C++, called as C would; and what rota.h and docs say of it.

Compiled callers are in ci/downstream, built and run by ci/check_downstream.
"""

import copy
import ctypes
import re
import textwrap
from pathlib import Path

import pytest

import rota

ROOT = Path(__file__).parent.parent
NAME = b"rota.kernels.picker._C_API"
SERVERS = ["a:80", "b:80", "c:80", "d:80"]
WEIGHTS = [3, 0, 1, 2]

INT, INDEX, SIZE, PLACE = ctypes.c_int, ctypes.c_int32, ctypes.c_ssize_t, ctypes.c_uint64
OBJECT, ADDRESS = ctypes.py_object, ctypes.c_void_p
# PYFUNCTYPE keeps the GIL and looks for exceptions, CFUNCTYPE lets it go.
WITH_GIL, WITHOUT = ctypes.PYFUNCTYPE, ctypes.CFUNCTYPE
# As it was published: the head of every table to come of this ABI version.
VERSION = 1
FUNCTIONS = [
    ("is_picker", WITH_GIL(INT, OBJECT)),
    ("picker_length", WITH_GIL(SIZE, OBJECT)),
    ("picker_index", WITHOUT(INDEX, OBJECT)),
    ("picker_fill", WITHOUT(None, OBJECT, ctypes.POINTER(INDEX), SIZE)),
    ("picker_object", WITH_GIL(ADDRESS, OBJECT, INDEX)),
    ("is_hash_picker", WITH_GIL(INT, OBJECT)),
    ("hash_picker_length", WITH_GIL(SIZE, OBJECT)),
    ("hash_picker_index", WITHOUT(INDEX, OBJECT, PLACE)),
    ("hash_picker_object", WITH_GIL(ADDRESS, OBJECT, INDEX)),
    ("hash_picker_place", WITH_GIL(INT, OBJECT, OBJECT, ctypes.POINTER(PLACE))),
    ("murmur3_place", WITHOUT(PLACE, ctypes.c_char_p, SIZE)),
]


class Table(ctypes.Structure):
    """`rota_api` of rota.h."""

    _fields_ = (("abi_version", ctypes.c_uint32), ("size", ctypes.c_uint32), *FUNCTIONS)


@pytest.fixture(scope="module")
def api(kernels):
    """The table."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    return Table.from_address(get_pointer(kernels.picker._C_API, NAME))


@pytest.fixture
def picker(kernels, picker_name):
    """A compiled picker of each kind, the same each time."""
    return getattr(kernels, picker_name)(SERVERS, WEIGHTS, seed=1)


def test_the_head_of_the_table(api):
    assert api.abi_version == VERSION
    assert api.size >= ctypes.sizeof(Table)
    assert all(ctypes.cast(getattr(api, name), ADDRESS).value for name, _ in FUNCTIONS)


def test_the_header_begins_with_what_was_published():
    header = Path(rota.get_include(), "rota.h").read_text()
    assert f"#define ROTA_ABI_VERSION {VERSION}\n" in header
    body = re.search(r"typedef struct rota_api \{(.*?)\} rota_api;", header, re.DOTALL)[1]
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
    fields = re.findall(r"(?:uint32_t |\(\*)(\w+)\)?[(;]", body)
    assert fields[: len(Table._fields_)] == [name for name, _ in Table._fields_]


def test_indices_are_those_of_python(api, picker):
    twin = copy.copy(picker)
    assert [api.picker_index(picker) for _ in range(200)] == [twin.pick_index() for _ in range(200)]
    assert picker.pick_many(50) == twin.pick_many(50)  # and Python goes on from there


@pytest.mark.parametrize("count", [0, 1, 5, 63, 64, 65, 1000])
def test_fills_are_those_of_python(api, picker, count):
    twin = copy.copy(picker)
    out = (INDEX * (count + 1))(*[-7] * (count + 1))
    for _ in range(3):
        api.picker_fill(picker, out, count)
        assert out[:count] == [twin.pick_index() for _ in range(count)]
        assert out[count] == -7
    assert picker.pick_index() == twin.pick_index()


def test_a_fill_of_less_than_nothing_writes_nothing(api, picker):
    out = (INDEX * 1)(-7)
    api.picker_fill(picker, out, -1)
    assert out[0] == -7


def test_nobody_is_minus_one(api, kernels, picker_name):
    for instances, weights in (([], []), (SERVERS, [0] * 4)):
        picker = getattr(kernels, picker_name)(instances, weights)
        out = (INDEX * 3)(7, 7, 7)
        api.picker_fill(picker, out, 3)
        assert out[:] == [-1] * 3
        assert api.picker_index(picker) == -1
        assert api.picker_length(picker) == len(instances)


def test_instances_by_index(api, picker):
    assert api.picker_length(picker) == 4
    assert [api.picker_object(picker, i) for i in range(4)] == [id(held) for held in SERVERS]
    assert [api.picker_object(picker, i) for i in (-1, 4, -(2**31), 2**31 - 1)] == [None] * 4


def test_what_is_a_picker(api, kernels, reference):
    ring = kernels.ConsistentHash(SERVERS)
    picker = kernels.RoundRobin(SERVERS)
    neither = (None, "RoundRobin", kernels.RoundRobin, object(), picker.attempts())
    twins = (reference.RoundRobin(SERVERS), reference.ConsistentHash(SERVERS))
    for thing in (*neither, *twins):
        assert (api.is_picker(thing), api.is_hash_picker(thing)) == (0, 0)
    assert (api.is_picker(picker), api.is_hash_picker(picker)) == (1, 0)
    assert (api.is_picker(ring), api.is_hash_picker(ring)) == (0, 1)
    assert api.is_hash_picker(kernels.Maglev(SERVERS)) == 1


def test_a_picker_that_was_not_made(api, kernels):
    """The base class by itself is of no use, and does no harm."""
    picker, ring = kernels.picker.Picker(), kernels.hash_picker.HashPicker()
    assert (api.picker_index(picker), api.picker_length(picker)) == (-1, 0)
    assert api.picker_object(picker, 0) is None
    assert (api.hash_picker_index(ring, 0), api.hash_picker_length(ring)) == (-1, 0)
    assert api.hash_picker_object(ring, 0) is None


def place_of(api, ring, key):
    """Return the place of a key."""
    place = PLACE()
    assert api.hash_picker_place(ring, key, place) == 0
    return place.value


@pytest.mark.parametrize("options", [{}, {"points": "nginx"}, {"load_factor": 1.25}])
def test_rings(api, kernels, options):
    ring = kernels.ConsistentHash(SERVERS, WEIGHTS, **options)
    for key in ("", "user:42", b"user:42", 42, -1, bytearray(b"x" * 40)):
        place = place_of(api, ring, key)
        index = api.hash_picker_index(ring, place)
        assert index == ring.pick_index(key)
        assert api.hash_picker_object(ring, index) == id(SERVERS[index])


def test_maglev_and_changes(api, kernels):
    table = kernels.Maglev(SERVERS, WEIGHTS, table_size=1009)
    table.remove(0)
    for key in range(100):
        assert api.hash_picker_index(table, place_of(api, table, key)) == table.pick_index(key)
    assert api.hash_picker_length(table) == 4  # the index that was left counts
    assert [api.hash_picker_object(table, i) for i in (-1, 4)] == [None] * 2
    assert api.hash_picker_object(table, 0) == id(None)


def test_an_empty_ring(api, kernels):
    ring = kernels.ConsistentHash([])
    assert api.hash_picker_index(ring, place_of(api, ring, "user:42")) == -1
    assert api.hash_picker_length(ring) == 0


@pytest.mark.parametrize(("key", "kind"), [(1.5, TypeError), (2**64, ValueError)])
def test_keys_of_no_use(api, kernels, key, kind):
    with pytest.raises(kind):
        api.hash_picker_place(kernels.ConsistentHash(SERVERS), key, PLACE())


def test_places_of_bytes(api, kernels):
    for data in (b"", b"user:42", bytes(range(256))):
        assert api.murmur3_place(data, len(data)) == kernels.murmur3.key_hash(data)


def test_the_examples_in_the_docs_are_those_that_are_built():
    sources = [path for path in (ROOT / "ci" / "downstream").rglob("*.*") if path.is_file()]
    texts = [path.read_text() for path in sources if path.suffix in (".c", ".pyx")]
    page = (ROOT / "docs" / "c_api.md").read_text()
    blocks = re.findall(r"^```(?:c|cython)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        assert any(block in text for text in texts), textwrap.shorten(block, 80)


def test_each_function_is_on_the_page():
    page = (ROOT / "docs" / "c_api.md").read_text()
    assert [name for name, _ in FUNCTIONS if f"`{name}" not in page] == []
