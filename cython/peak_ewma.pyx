"""Peak EWMA: of two instances at random, the one that should answer sooner.

The load of an instance is what a request would find there,

    average latency * (in flight + 1) / weight,

where the average is an exponentially weighted moving one that goes up at once and down with
time only, as Finagle's does:

    average <- average * w + rtt * (1 - w),    w = exp(-age / decay),

or, where that is more, RISE of the way up to the lesser of the last two latencies: what was
slow twice is slow, and one slow answer among many is chance. An average that nobody adds to
decays with w, so that who was slow is tried again.

No clock at the pick. All averages decay by the same factor, whatever the time is; so their
order does not change until one of them is added to, and it is kept in numbers that do not
change with time:

    key = log2(average) + stamp * rate,    rate = 1 / (decay * ln 2).

The difference of two keys is the logarithm of the ratio of the two decayed averages, at any
time. The second of two draws (see two_choices.pyx) is picked if

    slower(first, second) + busier(first, second) > 0

    slower = key[first] - key[second], each at least `typical_key`; 0 if within +-NOISE
    busier = log2 of (in flight + 1) / weight of the first, less that of the second

- A difference in latency of less than a factor of 2**NOISE is chance: of two equal instances
  called one at a time, neither is left alone because it had the last slow answer.
- `typical_key` is that of the running average of all successful calls. It is a lower bound: an
  instance that has not answered for long does not look ever better, and one of which nothing
  is known (its key is -inf) is taken to be as all others are.
- That weight alone speaks for the second does not count where the first is idle: at rest
  picks are shared out by weight.
- Both draws may be bad: if the better one is slower than typical by more than the noise,
  WALK more are looked at, side by side from a random place on.

How a call ended:
    success      as above
    failure      counts as max(rtt, timeout, 2 * average), the last at most 2**PATIENCE times
                 what is typical: who fails at once attracts nobody
    cancelled    took so long at least: the average may rise, and does not fall

Time does not go back: a call that ended before the last one that is known ended with it.

Invariants: those of two_choices.pyx; cost is 0 or at least LEAST_RTT * 2**-1000, keys are
finite where it is not 0, and -inf where it is.

Sources: Finagle's PeakEwma (there the read itself decays, and moves the stamp; here decays
compose, so reading leaves no trace); M. Mitzenmacher 2001, doi:10.1109/71.963420; linkerd2
and brpc for failures as latencies. The constants are by bench/simulation.py.

Cost: pick O(1), two loads, or six; done O(1), one logarithm and two powers at most, made of
additions, products and a division alone, so that they are the same to the last bit on every
machine. 40 bytes of load an instance.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint32_t

from cpython.object cimport PyObject

import math
import time

import numpy as np

from rota.arguments import as_duration, as_moment
from rota.outcome import Outcome, outcome_of

cimport cython

from rota.kernels.picker cimport lock, lock_t, take, unlock
from rota.kernels.splitmix64 cimport splitmix64_below
from rota.kernels.two_choices cimport (
    TwoChoices, begin_call, begin_index, end_index, get, load_t, read, read_float, write,
    write_float,
)

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #include <time.h>

    #define ROTA_LN2 0.6931471805599453

    /* The logarithm of x > 0, normal; within 1e-7. */
    static inline double rota_log2(double x)
    {
        uint64_t bits;
        memcpy(&bits, &x, 8);
        int64_t exponent = (int64_t)(bits >> 52) - 1023;
        bits = (bits & 0xFFFFFFFFFFFFFu) | 0x3FF0000000000000u;
        double mantissa;
        memcpy(&mantissa, &bits, 8);
        if (mantissa > 1.4142135623730951) {
            mantissa *= 0.5;
            exponent += 1;
        }
        double s = (mantissa - 1.0) / (mantissa + 1.0);
        double q = s * s;
        double series = (1.0 / 3 + q * (1.0 / 5)) + (q * q) * (1.0 / 7);   /* atanh */
        return (double)exponent + 2.8853900817779268 * (s + (s * q) * series);
    }

    /* 2**y for y <= 1000; within 1e-6 of it. 0 below 2**-1000. */
    static inline double rota_exp2(double y)
    {
        if (y < -1000.0)
            return 0.0;
        int64_t whole = (int64_t)(y < 0.0 ? y - 0.5 : y + 0.5);
        double t = (y - (double)whole) * ROTA_LN2;
        double q = t * t;
        double high = (1.0 / 24 + t * (1.0 / 120)) + q * (1.0 / 720);
        double series = (1.0 + t) + q * (0.5 + t * (1.0 / 6)) + (q * q) * high;
        uint64_t bits = (uint64_t)(whole + 1023) << 52;
        double power;
        memcpy(&power, &bits, 8);
        return series * power;
    }

    /* 2**-x for x >= 0, in the same way; shorter where x is small, as it nearly always is. */
    static inline double rota_decayed(double x)
    {
        if (x >= 1.0 / 64)
            return rota_exp2(-x);
        double t = x * ROTA_LN2;
        return (1.0 - t) + (t * t) * (0.5 - t * (1.0 / 6));
    }

    /* The logarithm of 1 + x for 0 <= x < 1/256; within 1e-10. */
    static inline double rota_log2_near_1(double x)
    {
        return (x * (1.0 - x * (0.5 - x * (1.0 / 3)))) * 1.4426950408889634;
    }

    /* A stamp wants no better than some milliseconds, and the coarse clock costs a fifth. */
    static inline double rota_seconds(int is_exact)
    {
        struct timespec now;
    #ifdef CLOCK_MONOTONIC_COARSE
        clock_gettime(is_exact ? CLOCK_MONOTONIC : CLOCK_MONOTONIC_COARSE, &now);
    #else
        (void)is_exact;
        clock_gettime(CLOCK_MONOTONIC, &now);
    #endif
        return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    }

    /* A number as its 64 bits, for a state. */
    static inline int64_t rota_bits(double x)
    {
        int64_t bits;
        memcpy(&bits, &x, 8);
        return bits;
    }

    static inline double rota_of_bits(int64_t bits)
    {
        double x;
        memcpy(&x, &bits, 8);
        return x;
    }
    """
    double LN2 "ROTA_LN2"
    int64_t bits_of "rota_bits"(double x) noexcept nogil
    double of_bits "rota_of_bits"(int64_t bits) noexcept nogil
    double c_log2 "rota_log2"(double x) noexcept nogil
    double c_exp2 "rota_exp2"(double y) noexcept nogil
    double c_decayed "rota_decayed"(double x) noexcept nogil
    double c_log2_near_1 "rota_log2_near_1"(double x) noexcept nogil
    double c_seconds "rota_seconds"(bint is_exact) noexcept nogil

cdef enum:
    N_LEVELS = 256
    SUCCESS = 0   # rota.outcome.Outcome
    FAILURE = 1
    WALK = 4

cdef double NOISE = 2.0             # log2 of a factor
cdef double PATIENCE = 7.0          # log2 of a factor
cdef double RISE = 0.375
cdef double SMOOTHING = 1.0 / 16    # of what is typical
cdef double LEAST_RTT = 1e-4        # seconds: less is the caller's own noise
cdef double MOST_RTT = 1e9
# Of a state: beyond these, powers of its numbers are none.
cdef double MOST_TIME = 1e18
cdef double MOST_LOG2 = 100.0
cdef double MOST_KEY = 1e30
# What is typical as long as nothing is known, as a part of the timeout: log2.
cdef double UNKNOWN = -10.0

# log2(k + 1), for k requests in flight.
cdef double level_of[N_LEVELS]
cdef int _k
for _k in range(N_LEVELS):
    level_of[_k] = c_log2(_k + 1.0)


def log2(double x):
    """Return the logarithm of x > 0, by additions, products and one division alone.

    Whatever the C library, the same to the last bit; within 1e-7. O(1).
    """
    return c_log2(x)


def exp2(double y):
    """Return 2**y for y <= 1000, in the same way; within 1e-6 of it. 0 below 2**-1000. O(1)."""
    return c_exp2(min(y, 1000.0))


cdef inline double level(int32_t in_flight) noexcept nogil:
    if <uint32_t>in_flight < <uint32_t>N_LEVELS:
        return level_of[in_flight]
    return c_log2(<double>in_flight + 1.0) if in_flight > 0 else 0.0


cdef class Averages:
    """What the pickers of the same instances share besides their loads."""

    def __cinit__(self, decay, timeout, clock, classify):
        self.decay = as_duration("decay", decay)
        self.timeout = as_duration("timeout", timeout)
        for name, function in (("clock", time.monotonic if clock is None else clock),
                               ("classify", classify)):
            if not callable(function):
                raise TypeError(f"{name} must be callable, got {function!r}")
        self.clock, self.classify = clock, classify
        self.rate = 1.0 / (self.decay * LN2)
        self.typical = self.typical_key = c_log2(self.timeout) + UNKNOWN
        self.now(True, &self.since)

    cdef int now(self, bint is_exact, double* seconds) except -1:
        if self.clock is None:
            seconds[0] = c_seconds(is_exact)
        else:
            seconds[0] = as_moment(self.clock())
        return 0


@cython.final
@cython.no_gc_clear
cdef class PeakEwma(TwoChoices):
    """PeakEwma(instances, weights=None, *, seed=None, decay=5.0, timeout=1.0, clock=None,
    classify=rota.outcome.outcome_of)

    Of two instances at random, the one that should answer sooner.

    Parameters
    ----------
    instances : sequence of any objects, length n
    weights : integers, shape (n,), >= 0, sum < 2**63; None: all 1
        Capacities, relative to each other.
    seed : integer in [0, 2**64); None: the operating system's entropy
    decay : seconds
        An average that nobody adds to is 1/e of itself after so long.
    timeout : seconds
        What a failed call counts as, at least.
    clock : callable () -> seconds, or None: the monotonic clock
    classify : callable (error) -> rota.outcome.Outcome
        How a call with that error ended; not asked where there was none.

    Raises
    ------
    TypeError, ValueError
        An argument is of no use; the message names it and the value.

    Notes
    -----
    `acquire` counts a request in flight until its lease is done; `pick` goes by what is
    known and leaves it alone. O(1), and no clock. Any number of threads may share it.
    Finagle's peak EWMA; Mitzenmacher 2001, doi:10.1109/71.963420.
    """

    def __cinit__(self, instances, weights=None, *, seed=None, decay=5.0, timeout=1.0,
                  clock=None, classify=outcome_of):
        cdef Py_ssize_t i
        self.averages = Averages(decay, timeout, clock, classify)
        self.hold(instances, weights, seed)
        self.resize(self.capacity)
        self.hold_loads()
        for i in range(self.n):
            if self.weight[i]:
                self.load[i].log2_weight = <float>c_log2(<double>self.weight[i])
        self.begin()
        self.is_made(seed)

    def pick(self):
        """Return the next instance, or None when nothing has weight. O(1).

        Nothing is counted; see `acquire`.
        """
        return take(self)

    def acquire(self):
        """Pick, and count one more in flight there, until the lease is released. O(1).

        Returns
        -------
        Lease or None
            With `.instance`, `.index`, `.done(rtt, error)`, `.release()`; a context manager
            that gives the instance and reports by itself. None when nothing has weight.
        """
        return begin_call(self)

    def acquire_index(self):
        """Pick, and count one more in flight there: the index, or None. O(1).

        The caller owes one `done` of that index; `acquire` sees to that by itself.
        """
        cdef int32_t i = begin_index(self)
        return None if i < 0 else i

    def done(self, index, rtt, error=None):
        """Say how a call that `acquire_index` began has ended. O(1).

        Parameters
        ----------
        index : integer
        rtt : float
            How long it took, seconds.
        error : exception or None

        Raises
        ------
        TypeError, ValueError
            An index of nobody, no finite number of seconds >= 0; nothing has changed.
        """
        end_index(self, index, rtt, error)

    cdef int32_t prefer(self, int32_t first) noexcept nogil:
        cdef int32_t best = self.better(first, self.second(first)), i
        cdef Py_ssize_t _k, place
        if read(&self.load[best].key) > read(&self.averages.typical_key) + NOISE:
            place = splitmix64_below(&self.random, self.n_live)
            for _k in range(min(self.n_live, <Py_ssize_t>WALK)):
                i = self.at(place)
                if i != best:
                    best = self.better(best, i)
                place = place + 1 if place + 1 < self.n_live else 0
        return best

    cdef inline int32_t better(self, int32_t one, int32_t other) noexcept nogil:
        """Return the one that should answer sooner, the first where nothing tells."""
        cdef const load_t* a = self.load[one]
        cdef const load_t* b = self.load[other]
        cdef double least = read(&self.averages.typical_key)
        cdef double slower = max(read(&a.key), least) - max(read(&b.key), least), busier
        cdef int32_t in_flight = get(&a.in_flight)
        if -NOISE <= slower <= NOISE:
            slower = 0.0
        busier = ((level(in_flight) - <double>read_float(&a.log2_weight))
                  - (level(get(&b.in_flight)) - <double>read_float(&b.log2_weight)))
        if in_flight <= 0 and busier > 0.0:
            busier = 0.0
        return other if slower + busier > 0.0 else one

    cdef void reweigh(self, Py_ssize_t i, int64_t weight) noexcept nogil:
        TwoChoices.reweigh(self, i, weight)
        write_float(&self.load[i].log2_weight, <float>(c_log2(<double>weight) if weight else 0.0))

    cdef int now(self, bint is_exact, double* seconds) except -1:
        return self.averages.now(is_exact, seconds)

    cdef int observe(self, load_t* load, double rtt, double now, object error) except -1:
        cdef int outcome = SUCCESS if error is None else Outcome(self.averages.classify(error))
        cdef lock_t section
        lock(&section, <PyObject*>self.averages)
        learn(self.averages, load, rtt, now - self.averages.since, outcome)
        unlock(&section)
        return 0

    cdef int join(self, TwoChoices whole) except -1:
        self.averages = (<PeakEwma>whole).averages
        return 0

    cdef object state(self):
        """Return that of the choices, the loads' averages by index, and what is shared."""
        cdef Averages averages = self.averages
        cdef const load_t* load
        cdef Py_ssize_t i
        cdef list keys = [], costs = [], stamps = [], lasts = []
        for i in range(self.n):
            load = self.load[i]
            keys.append(bits_of(load.key if load != NULL and load.cost > 0.0 else 0.0))
            costs.append(bits_of(read(&load.cost) if load != NULL else 0.0))
            stamps.append(bits_of(read(&load.stamp) if load != NULL else 0.0))
            lasts.append(bits_of(read_float(&load.last_rtt) if load != NULL else 0.0))
        shared = [int(averages.is_warm), bits_of(averages.typical), bits_of(averages.last)]
        return TwoChoices.state(self) + (keys, costs, stamps, lasts, shared)

    cdef int restore(self, state) except -1:
        """Go on from a state; the time since its last call has not passed."""
        cdef Averages averages = self.averages
        cdef load_t* load
        cdef Py_ssize_t i
        if not isinstance(state, tuple) or len(state) != 8:
            raise ValueError(f"state must have eight parts, got {state!r}")
        shared = numbers(state[7], 3, -MOST_TIME, MOST_TIME)
        if not (0.0 <= shared[2] and -MOST_LOG2 <= shared[1] <= MOST_LOG2):
            raise ValueError(f"state must have a time and what is typical by then, got {shared}")
        keys = numbers(state[3], self.n, -MOST_KEY, MOST_KEY)
        # An average of numbers may come out above the largest of them, by the rounding.
        costs = numbers(state[4], self.n, 0.0, 2.0 * MOST_RTT)
        stamps = numbers(state[5], self.n, 0.0, shared[2])
        lasts = numbers(state[6], self.n, 0.0, MOST_RTT)
        TwoChoices.restore(self, state[:3])
        for i in range(self.n):
            load = self.load[i]
            if load != NULL:
                load.cost, load.stamp, load.last_rtt = costs[i], stamps[i], <float>lasts[i]
                load.key = keys[i] if load.cost > 0.0 else -INFINITY
        averages.is_warm = state[7][0] != 0
        averages.typical, averages.last = shared[1], shared[2]
        averages.typical_key = averages.typical + averages.last * averages.rate
        averages.since -= averages.last
        return 0

    cdef dict options(self):
        cdef Averages averages = self.averages
        return {"decay": averages.decay, "timeout": averages.timeout, "clock": averages.clock,
                "classify": averages.classify}

    @property
    def latencies(self):
        """Average latencies by index, seconds, as of each one's last call: float64 array, a copy.

        NaN where nothing is known.
        """
        cdef Py_ssize_t i
        cdef double cost
        with cython.critical_section(self):
            n = self.n
        cdef object array = np.full(n, math.nan)
        cdef double[::1] view = array
        with cython.critical_section(self):
            for i in range(min(view.shape[0], self.n)):
                cost = read(&self.load[i].cost) if self.load[i] != NULL else 0.0
                if cost > 0.0:
                    view[i] = cost
        return array


cdef list numbers(part, Py_ssize_t n, double least, double most):
    """Return the n numbers in [least, most] that are given by their bits."""
    cdef list found = [of_bits(bits) for bits in part] if isinstance(part, list) else []
    if len(found) != n or not all([least <= number <= most for number in found]):
        raise ValueError(f"state must have {n} numbers in [{least}, {most}], got {found}")
    return found


cdef void learn(Averages averages, load_t* load, double rtt, double now,
                int outcome) noexcept nogil:
    """Add a call that ended now, seconds since the averages were made; under their lock."""
    cdef double old = load.cost, share, left, cost, peak, key, height
    rtt = min(max(rtt, LEAST_RTT), MOST_RTT)
    now = max(now, averages.last)  # keys compare only if time never goes back
    share = c_decayed((now - load.stamp) * averages.rate)
    left = old * share
    cost = left
    if outcome == SUCCESS:
        if old > 0.0:
            peak = min(rtt, <double>read_float(&load.last_rtt))
            cost = max(left + rtt * (1.0 - share), left + (peak - left) * RISE)
        elif averages.is_warm:
            cost = c_exp2(averages.typical)
            cost += (rtt - cost) * RISE
        else:
            cost = rtt
        write_float(&load.last_rtt, <float>rtt)
    elif outcome == FAILURE:
        cost = max(left, min(2.0 * old, c_exp2(averages.typical + PATIENCE)))
        cost = min(max(cost, max(rtt, averages.timeout)), MOST_RTT)
        write_float(&load.last_rtt, <float>cost)
    elif old > 0.0:
        cost = max(left, rtt)
    else:
        return
    # The key stands for what is left, so it goes up by as much as that has gone up.
    if cost - left < left * (1.0 / 256):
        key = load.key + c_log2_near_1((cost - left) / left)
        height = key - now * averages.rate
    else:
        height = c_log2(cost)
        key = height + now * averages.rate
    averages.last = now
    write(&load.stamp, now)
    write(&load.key, key)
    write(&load.cost, cost)
    if outcome == SUCCESS:
        if averages.is_warm:
            averages.typical += (height - averages.typical) * SMOOTHING
        else:
            averages.is_warm, averages.typical = True, height
    write(&averages.typical_key, averages.typical + now * averages.rate)
