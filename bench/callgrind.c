/* What counted.py needs under callgrind: marks, and a clock that tells the same time every run.

It is loaded before all else (LD_PRELOAD), so that its clock is everybody's. */

#include <time.h>

#include <valgrind/callgrind.h>

enum { STEP = 10000 };  /* ns from one look at the clock to the next */

/* PeakEwma's averages depend on the time, and so do its branches. */
int clock_gettime(clockid_t clock, struct timespec *now) {
    static long long looks = 100000000;
    long long time = STEP * __atomic_add_fetch(&looks, 1, __ATOMIC_RELAXED);
    (void)clock;
    now->tv_sec = time / 1000000000;
    now->tv_nsec = time % 1000000000;
    return 0;
}

/* From here on instructions are counted; before that all runs some ten times as fast. */
void begin(void) {
    CALLGRIND_START_INSTRUMENTATION;
}

void zero(void) {
    CALLGRIND_ZERO_STATS;
}

/* Write what was counted since zero() to the next file, with this name in it. */
void dump(const char *name) {
    CALLGRIND_DUMP_STATS_AT(name);
}
