"""Round robin, for cimport; pick with `picker_index` of rota.kernels.picker."""

from rota.kernels.picker cimport Picker


cdef class RoundRobin(Picker):
    pass
