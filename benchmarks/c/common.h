/* common.h: code that the benchmark programs share: failing with a reason, the clock, the limit on open files. */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <stdint.h>

#define NS_PER_SECOND 1000000000LL
#define NS_PER_MS 1000000LL
#define NS_PER_US 1000LL

/* Print the reason on stderr and exit with status 1.  A benchmark that has failed in any way must not print a figure. */
__attribute__((noreturn, format(printf, 1, 2))) void fail(const char *format, ...);

/* Allocate as calloc does, or fail the program. */
void *allocate(uint64_t count, uint64_t size);

int64_t monotonic_ns(void);

/* Parse a whole decimal number between `low` and `high`, or fail the program with a message that names `what`. */
int64_t parse_integer(const char *what, const char *text, int64_t low, int64_t high);

/* Raise the soft limit on open files to the hard one; returns the limit now in force. */
uint64_t raise_open_file_limit(void);

#endif
