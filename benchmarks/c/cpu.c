/* cpu.c: see cpu.h. */
#define _GNU_SOURCE
#include "cpu.h"

#include "common.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int open_for_reading(const char *path)
{
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        fail("%s: %s", path, strerror(errno));
    return descriptor;
}

/* The kernel generates a file below /proc anew for every read at offset 0. */
static void read_text(int descriptor, pid_t pid, char *text, size_t size)
{
    ssize_t length = pread(descriptor, text, size - 1, 0);
    if (length <= 0)
        fail("process %d is gone", (int)pid);
    text[length] = '\0';
}

void cpu_watch(struct watched_process *process, pid_t pid)
{
    char path[64];
    memset(process, 0, sizeof *process);
    process->pid = pid;
    int error = clock_getcpuclockid(pid, &process->clock);
    if (error)
        fail("CPU clock of process %d: %s", (int)pid, strerror(error));
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *threads = opendir(path);
    if (!threads)
        fail("%s: %s", path, strerror(errno));
    for (struct dirent *entry = readdir(threads); entry; entry = readdir(threads)) {
        if (entry->d_name[0] == '.')
            continue;
        if (process->threads == CPU_MAX_THREADS)
            fail("process %d has more than %d threads", (int)pid, CPU_MAX_THREADS);
        snprintf(path, sizeof path, "/proc/%d/task/%.20s/schedstat", (int)pid, entry->d_name);
        process->run_delay[process->threads++] = open_for_reading(path);
    }
    closedir(threads);
}

int64_t cpu_used_ns(const struct watched_process *process)
{
    struct timespec used;
    if (clock_gettime(process->clock, &used) < 0)
        fail("CPU clock of process %d: %s", (int)process->pid, strerror(errno));
    return used.tv_sec * NS_PER_SECOND + used.tv_nsec;
}

int64_t cpu_waited_ns(const struct watched_process *process)
{
    int64_t waited = 0;
    for (uint32_t i = 0; i < process->threads; i++) {
        char text[128];
        long long run_delay;
        read_text(process->run_delay[i], process->pid, text, sizeof text);
        if (sscanf(text, "%*s %lld", &run_delay) != 1)
            fail("/proc/%d/task/*/schedstat is not in the known form", (int)process->pid);
        waited += run_delay;
    }
    return waited;
}

struct cpu_split cpu_split(const struct watched_process *process)
{
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)process->pid);
    int descriptor = open_for_reading(path);
    read_text(descriptor, process->pid, text, sizeof text);
    close(descriptor);
    /* Fields 14 and 15; the second field, the name in brackets, may itself contain blanks and brackets. */
    const char *after_name = strrchr(text, ')');
    unsigned long user, system;
    if (!after_name ||
        sscanf(after_name + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2)
        fail("%s is not in the known form", path);
    double tick = 1.0 / (double)sysconf(_SC_CLK_TCK);
    return (struct cpu_split){.user = (double)user * tick, .system = (double)system * tick};
}
