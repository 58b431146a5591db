/* common.c: see common.h. */
#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

void fail(const char *format, ...)
{
    va_list arguments;
    fprintf(stderr, "%s: ", program_invocation_short_name);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

void *allocate(uint64_t count, uint64_t size)
{
    void *memory = calloc(count, size);
    if (!memory)
        fail("out of memory for %llu x %llu bytes", (unsigned long long)count, (unsigned long long)size);
    return memory;
}

int64_t monotonic_ns(void)
{
    struct timespec now;
    if (clock_gettime(CLOCK_MONOTONIC, &now) < 0)
        fail("clock_gettime: %s", strerror(errno));
    return now.tv_sec * NS_PER_SECOND + now.tv_nsec;
}

int64_t parse_integer(const char *what, const char *text, int64_t low, int64_t high)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno || end == text || *end || value < low || value > high)
        fail("%s must be a number from %lld to %lld, not '%s'", what, (long long)low, (long long)high, text);
    return value;
}

uint64_t raise_open_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        fail("getrlimit: %s", strerror(errno));
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        fail("setrlimit: %s", strerror(errno));
    return limit.rlim_cur;
}
