/* common.h: what both benchmark programs need: giving up with a reason, the clock, the limit on open files. */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <stdint.h>

#define NS_PER_SECOND 1000000000LL
#define NS_PER_MS 1000000LL
#define NS_PER_US 1000LL

/* Say why on stderr and exit with status 1.  A benchmark that has gone wrong in any way must not print a figure. */
__attribute__((noreturn, format(printf, 1, 2))) void fail(const char *format, ...);

/* calloc that fails the program */
void *allocate(uint64_t count, uint64_t size);

int64_t monotonic_ns(void);

/* A whole decimal number between `low` and `high`, or the program fails naming `what`. */
int64_t parse_integer(const char *what, const char *text, int64_t low, int64_t high);

/* Raise the soft limit on open files to the hard one; returns the limit now in force. */
uint64_t raise_open_file_limit(void);

#endif
