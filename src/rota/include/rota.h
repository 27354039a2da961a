/* rota's pickers for C and C++, by a table of functions: docs/c_api.md.

   Include it after Python.h, with `rota.get_include()` among the folders to search:

       static const rota_api *rota;
       ...
       rota = rota_import();        // once, with the GIL; NULL: an exception is set
       if (rota == NULL) return -1;

   The rules of the table, for whoever changes it:

   1. Functions are appended at the end. None is ever moved, removed, or given other
      arguments, another result, other demands on the caller or another meaning.
   2. An addition leaves ROTA_ABI_VERSION alone: `size` says what a table has. So a program
      built with an older header runs with any newer rota of the same ABI version, and one
      built with a newer header is refused by `rota_import`, not by a crash.
   3. Only what breaks rule 1 raises ROTA_ABI_VERSION, and needs a line in CHANGELOG.md.

   Who may call what

   - "GIL": with the GIL held. Else with or without it.
   - "One thread": one thread at a time on one picker, and meanwhile no change of the picker
     and no pick of it from Python. A thread that picks without the GIL takes a picker of its
     own: copy.copy(picker), or one made with a start or seed of its own. Who holds the GIL
     (on a free-threaded Python: the critical section of the picker) is alone with it anyway.
   - "Any threads": any number at once on one picker, as long as nobody changes it.

   `picker` must be what the check of its kind, is_picker or is_hash_picker, is true for:
   check once, where the object comes in; the functions do not check again. The caller keeps
   a reference to the picker. */

#ifndef ROTA_H
#define ROTA_H

#include <Python.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ROTA_ABI_VERSION 1
#define ROTA_MODULE "rota.kernels.picker"
#define ROTA_CAPSULE "rota.kernels.picker._C_API"

typedef struct rota_api {
    uint32_t abi_version; /* ROTA_ABI_VERSION of the rota that is installed */
    uint32_t size;        /* of its table, in bytes */

    /* RoundRobin, WeightedRandom and the others that need no key */

    /* 1 for a compiled picker, else 0; never an exception. GIL. */
    int (*is_picker)(PyObject *object);
    /* Every index is below this; with an instance that has left, its index still counts. GIL. */
    Py_ssize_t (*picker_length)(PyObject *picker);
    /* The index of the next instance, -1 when nothing has weight. O(1). One thread. */
    int32_t (*picker_index)(PyObject *picker);
    /* Write the next `count` indices, -1 where nothing has weight. O(count). One thread. */
    void (*picker_fill)(PyObject *picker, int32_t *out, Py_ssize_t count);
    /* The instance of an index, borrowed from the picker until that is changed: None where it
       has left, NULL without an exception for an index out of range, such as -1. O(1). GIL. */
    PyObject *(*picker_object)(PyObject *picker, int32_t index);

    /* ConsistentHash, Maglev */

    /* 1 for a compiled hash picker, else 0; never an exception. GIL. */
    int (*is_hash_picker)(PyObject *object);
    /* As picker_length. GIL. */
    Py_ssize_t (*hash_picker_length)(PyObject *picker);
    /* The index of the instance for a key at `place`, -1 when nothing has weight. O(1)
       expected. Any threads; with a load factor, acquire and release count as changes. */
    int32_t (*hash_picker_index)(PyObject *picker, uint64_t place);
    /* As picker_object. GIL. */
    PyObject *(*hash_picker_object)(PyObject *picker, int32_t index);
    /* The place of a key by the picker's own rule for keys: 0; or -1, and a TypeError or
       ValueError is set. GIL. */
    int (*hash_picker_place)(PyObject *picker, PyObject *key, uint64_t *place);
    /* The place of a key of `length` bytes for Maglev and for ConsistentHash with
       points="murmur3": the first word of MurmurHash3 x64-128, seed 0. A str counts as its
       UTF-8, an int as its 8 bytes, little-endian. Any threads. */
    uint64_t (*murmur3_place)(const void *data, Py_ssize_t length);
} rota_api;

/* The table; NULL and an ImportError when there is none, or none that will do. GIL. */
static inline const rota_api *rota_import(void)
{
    const rota_api *api = NULL;
    PyObject *capsule = NULL;
    PyObject *module = PyImport_ImportModule(ROTA_MODULE);
    if (module != NULL) {
        capsule = PyObject_GetAttrString(module, "_C_API");
    }
    if (capsule != NULL) {
        api = (const rota_api *)PyCapsule_GetPointer(capsule, ROTA_CAPSULE);
    }
    Py_XDECREF(capsule);
    Py_XDECREF(module);
    if (api == NULL) {
        return NULL;
    }
    if (api->abi_version != ROTA_ABI_VERSION) {
        PyErr_Format(PyExc_ImportError,
                     "rota has the ABI version %u, this was built for %u: build it anew",
                     (unsigned)api->abi_version, (unsigned)ROTA_ABI_VERSION);
        return NULL;
    }
    if (api->size < sizeof(rota_api)) {
        PyErr_Format(PyExc_ImportError,
                     "rota is too old: its table has %u bytes, this was built for %u",
                     (unsigned)api->size, (unsigned)sizeof(rota_api));
        return NULL;
    }
    return api;
}

#ifdef __cplusplus
}
#endif

#endif
