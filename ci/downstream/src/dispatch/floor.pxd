from rota.kernels.picker cimport Picker

cdef int nothing(Picker picker) noexcept nogil
