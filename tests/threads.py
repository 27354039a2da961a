"""Threads that begin at once, and whose errors are the test's."""

import threading

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
