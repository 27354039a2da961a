# The table of functions that rota.h describes, for C and C++ without Cython. Included by
# picker.pyx; the rules for changing it are at the top of rota.h.

from libc.stdint cimport uint32_t

from cpython.pycapsule cimport PyCapsule_New

from rota.kernels.hash_picker cimport (
    HashPicker, hash_picker_index, hash_picker_length, hash_picker_object, hash_picker_place,
)
from rota.kernels.murmur3 cimport murmur3_x64_128

cdef extern from "rota.h":
    enum:
        ROTA_ABI_VERSION
    const char* ROTA_CAPSULE

    # The C compiler checks these types against the header's.
    ctypedef struct rota_api:
        uint32_t abi_version
        uint32_t size
        int (*is_picker)(PyObject*) noexcept
        Py_ssize_t (*picker_length)(PyObject*) noexcept
        int32_t (*picker_index)(PyObject*) noexcept nogil
        void (*picker_fill)(PyObject*, int32_t*, Py_ssize_t) noexcept nogil
        PyObject* (*picker_object)(PyObject*, int32_t) noexcept
        int (*is_hash_picker)(PyObject*) noexcept
        Py_ssize_t (*hash_picker_length)(PyObject*) noexcept
        int32_t (*hash_picker_index)(PyObject*, uint64_t) noexcept nogil
        PyObject* (*hash_picker_object)(PyObject*, int32_t) noexcept
        int (*hash_picker_place)(PyObject*, PyObject*, uint64_t*) except -1
        uint64_t (*murmur3_place)(const void*, Py_ssize_t) noexcept nogil


# Who calls through the table has a PyObject* and has checked it, so each function has a
# door that takes it at its word; the compiler puts the function itself behind it.

cdef int api_is_picker(PyObject* thing) noexcept:
    return isinstance(<object>thing, Picker)


cdef Py_ssize_t api_picker_length(PyObject* picker) noexcept:
    return picker_length(<Picker>picker)


cdef int32_t api_picker_index(PyObject* picker) noexcept nogil:
    return picker_index(<Picker>picker)


cdef void api_picker_fill(PyObject* picker, int32_t* out, Py_ssize_t count) noexcept nogil:
    picker_fill(<Picker>picker, out, count)


cdef PyObject* api_picker_object(PyObject* picker, int32_t i) noexcept:
    return picker_object(<Picker>picker, i)


cdef int api_is_hash_picker(PyObject* thing) noexcept:
    return isinstance(<object>thing, HashPicker)


cdef Py_ssize_t api_hash_picker_length(PyObject* picker) noexcept:
    return hash_picker_length(<HashPicker>picker)


cdef int32_t api_hash_picker_index(PyObject* picker, uint64_t place) noexcept nogil:
    return hash_picker_index(<HashPicker>picker, place)


cdef PyObject* api_hash_picker_object(PyObject* picker, int32_t i) noexcept:
    return hash_picker_object(<HashPicker>picker, i)


cdef int api_hash_picker_place(PyObject* picker, PyObject* key, uint64_t* out) except -1:
    return hash_picker_place(<HashPicker>picker, <object>key, out)


cdef uint64_t api_murmur3_place(const void* data, Py_ssize_t length) noexcept nogil:
    return murmur3_x64_128(<const uint8_t*>data, length, 0).low


cdef rota_api api_table

api_table.abi_version = ROTA_ABI_VERSION
api_table.size = sizeof(rota_api)
api_table.is_picker = api_is_picker
api_table.picker_length = api_picker_length
api_table.picker_index = api_picker_index
api_table.picker_fill = api_picker_fill
api_table.picker_object = api_picker_object
api_table.is_hash_picker = api_is_hash_picker
api_table.hash_picker_length = api_hash_picker_length
api_table.hash_picker_index = api_hash_picker_index
api_table.hash_picker_object = api_hash_picker_object
api_table.hash_picker_place = api_hash_picker_place
api_table.murmur3_place = api_murmur3_place

_C_API = PyCapsule_New(&api_table, ROTA_CAPSULE, NULL)
