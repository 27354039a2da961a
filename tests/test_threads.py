"""One picker for all threads: no pick is lost, none comes twice."""

import threading
from collections import Counter

import numpy as np

N_THREADS = 8


def run_threads(*bodies):
    barrier, errors = threading.Barrier(len(bodies)), []

    def run(body):
        try:
            barrier.wait()
            body()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_picks_of_many_threads_are_the_sequence(impl, picker_name):
    """The multiset of all threads' picks is that of one thread's."""
    make = getattr(impl, picker_name)
    weights = [5, 1, 0, 7, 30, 2]
    picker, alone = make(range(6), weights, seed=1), make(range(6), weights, seed=1)
    counts = [Counter() for _ in range(N_THREADS)]
    n_picks = 20_000 if impl.name == "kernels" else 2_000

    def body(k):
        def pick():
            doors = (picker.pick, picker.next, picker.pick_index, picker.__next__)
            door = doors[k % 4]
            counts[k].update(door() for _ in range(n_picks))

        return pick

    run_threads(*[body(k) for k in range(N_THREADS)])
    assert sum(counts, Counter()) == Counter(alone.pick_many(N_THREADS * n_picks))
    assert picker.pick_many(100) == alone.pick_many(100)


def test_fills_without_the_gil_reserve_their_range(kernels, picker_name):
    """Long fills, which let the GIL go, beside single picks: together, the sequence."""
    make = getattr(kernels, picker_name)
    weights = [5, 1, 0, 7, 30, 2]
    picker, alone = make(range(6), weights, seed=1), make(range(6), weights, seed=1)
    n_fills, size, n_picks = 20, 50_000, 100_000
    totals = [np.zeros(6, np.int64) for _ in range(5)]

    def filling(k):
        def body():
            out = np.empty(size, np.int32)
            for _ in range(n_fills):
                picker.fill(out)
                totals[k] += np.bincount(out, minlength=6)

        return body

    def picking():
        for _ in range(n_picks):
            totals[4][picker.pick()] += 1

    run_threads(*[filling(k) for k in range(4)], picking)
    expected = np.empty(4 * n_fills * size + n_picks, np.int32)
    alone.fill(expected)
    np.testing.assert_array_equal(sum(totals), np.bincount(expected, minlength=6))
    assert picker.pick_many(100) == alone.pick_many(100)


def test_attempts_of_many_threads(impl, picker_name):
    picker = getattr(impl, picker_name)(range(50), range(50))

    def body():
        for _ in range(20):
            assert sorted(picker.attempts()) == list(range(1, 50))

    run_threads(*[body] * N_THREADS)
