# cython: language_level=3
"""What a call from one module's C into another's costs before any work is done."""

from rota.kernels.picker cimport Picker


cdef int nothing(Picker picker) noexcept nogil:
    return 0
