"""The floor: what a call into compiled code costs before any work is done."""

cimport cython


@cython.final
cdef class Floor:
    """Methods that return an object they hold, and nothing else."""

    cdef object held

    def __cinit__(self, held):
        self.held = held

    def no_argument(self):
        """Return the object."""
        return self.held

    def one_argument(self, key):
        """Return the object."""
        return self.held
