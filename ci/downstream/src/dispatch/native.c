/* The same requests dispatched from C, through the table of rota.h. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <rota.h>

#ifndef DISPATCH_NAME /* native_cpp.cpp compiles this file as C++ */
#define DISPATCH_NAME "dispatch.native"
#define DISPATCH_INIT PyInit_native
#endif

static const rota_api *rota;

/* Read (object, n); the object must be what `is_one` is true for. */
static int read_arguments(PyObject *arguments, int (*is_one)(PyObject *), const char *what,
                          PyObject **object, Py_ssize_t *n)
{
    if (!PyArg_ParseTuple(arguments, "On", object, n)) {
        return -1;
    }
    if (!is_one(*object)) {
        PyErr_Format(PyExc_TypeError, "not %s: %R", what, *object);
        return -1;
    }
    if (*n < 0) {
        PyErr_Format(PyExc_ValueError, "n must be >= 0, got %zd", *n);
        return -1;
    }
    return 0;
}

/* Return a list of the counts, which are freed. */
static PyObject *as_list(int64_t *counts, Py_ssize_t length)
{
    PyObject *list = PyList_New(length);
    for (Py_ssize_t i = 0; list != NULL && i < length; i++) {
        PyObject *count = PyLong_FromLongLong(counts[i]);
        if (count == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SetItem(list, i, count);
        }
    }
    PyMem_Free(counts);
    return list;
}

/* count_picks(picker, n): how many of n requests went to each index, last how many to nobody. */
static PyObject *count_picks(PyObject *self, PyObject *arguments)
{
    PyObject *picker;
    Py_ssize_t n_requests, length;
    int64_t *counts;
    (void)self;
    if (read_arguments(arguments, rota->is_picker, "a picker", &picker, &n_requests) < 0) {
        return NULL;
    }
    length = rota->picker_length(picker);
    counts = (int64_t *)PyMem_Calloc((size_t)length + 1, sizeof(int64_t));
    if (counts == NULL) {
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t request = 0; request < n_requests; request++) {
        int32_t i = rota->picker_index(picker);
        counts[i >= 0 ? i : length] += 1;
    }
    Py_END_ALLOW_THREADS
    return as_list(counts, length + 1);
}

/* first_picks(picker, n): the next n picks, taken at once, as instances. */
static PyObject *first_picks(PyObject *self, PyObject *arguments)
{
    PyObject *picker, *picks = NULL;
    Py_ssize_t n;
    int32_t *indices;
    (void)self;
    if (read_arguments(arguments, rota->is_picker, "a picker", &picker, &n) < 0) {
        return NULL;
    }
    indices = (int32_t *)PyMem_Calloc((size_t)n + 1, sizeof(int32_t));
    if (indices == NULL) {
        return PyErr_NoMemory();
    }
    rota->picker_fill(picker, indices, n);
    picks = PyList_New(n);
    for (Py_ssize_t k = 0; picks != NULL && k < n; k++) {
        PyObject *instance = rota->picker_object(picker, indices[k]);
        if (instance == NULL) {
            instance = Py_None;
        }
        Py_INCREF(instance);
        PyList_SetItem(picks, k, instance);
    }
    PyMem_Free(indices);
    return picks;
}

/* count_users(ring, n): how many of the users 0, 1, .. n - 1, by number, belong to each index. */
static PyObject *count_users(PyObject *self, PyObject *arguments)
{
    PyObject *ring;
    Py_ssize_t n_users, length;
    int64_t *counts;
    (void)self;
    if (read_arguments(arguments, rota->is_hash_picker, "a hash picker", &ring, &n_users) < 0) {
        return NULL;
    }
    length = rota->hash_picker_length(ring);
    counts = (int64_t *)PyMem_Calloc((size_t)length + 1, sizeof(int64_t));
    if (counts == NULL) {
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t user = 0; user < n_users; user++) {
        unsigned char key[8];
        int32_t i;
        for (int k = 0; k < 8; k++) {
            key[k] = (unsigned char)((uint64_t)user >> 8 * k);
        }
        i = rota->hash_picker_index(ring, rota->murmur3_place(key, 8));
        if (i >= 0) {
            counts[i] += 1;
        }
    }
    Py_END_ALLOW_THREADS
    return as_list(counts, length);
}

/* owner(ring, key): the instance of a key of any type, None where nothing has weight. */
static PyObject *owner(PyObject *self, PyObject *arguments)
{
    PyObject *ring, *key, *instance;
    uint64_t place;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "OO", &ring, &key)) {
        return NULL;
    }
    if (!rota->is_hash_picker(ring)) {
        return PyErr_Format(PyExc_TypeError, "not a hash picker: %R", ring);
    }
    if (rota->hash_picker_place(ring, key, &place) < 0) {
        return NULL;
    }
    instance = rota->hash_picker_object(ring, rota->hash_picker_index(ring, place));
    if (instance == NULL) {
        instance = Py_None;
    }
    Py_INCREF(instance);
    return instance;
}

/* sum_of_picks(picker, n): the loop that is timed. */
static PyObject *sum_of_picks(PyObject *self, PyObject *arguments)
{
    PyObject *picker;
    Py_ssize_t n;
    int64_t total = 0;
    (void)self;
    if (read_arguments(arguments, rota->is_picker, "a picker", &picker, &n) < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t k = 0; k < n; k++) {
        total += rota->picker_index(picker);
    }
    Py_END_ALLOW_THREADS
    return PyLong_FromLongLong(total);
}

static PyMethodDef methods[] = {
    {"count_picks", count_picks, METH_VARARGS, NULL},
    {"first_picks", first_picks, METH_VARARGS, NULL},
    {"count_users", count_users, METH_VARARGS, NULL},
    {"owner", owner, METH_VARARGS, NULL},
    {"sum_of_picks", sum_of_picks, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static int begin(PyObject *module)
{
    (void)module;
    rota = rota_import();
    return rota == NULL ? -1 : 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)begin},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, DISPATCH_NAME, NULL, 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC DISPATCH_INIT(void)
{
    return PyModuleDef_Init(&definition);
}
