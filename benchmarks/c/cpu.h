/* cpu.h: the CPU time that a process has used, and the time that it has waited for a CPU.
 *
 * The generator reads the used time from the process's CPU-time clock, which the scheduler counts in nanoseconds.  Most
 * kernels split it into user and system time by sampling in ticks of 10 ms or less, so the split is valid over seconds
 * only, and the generator uses it only as a proportion.
 *
 * The waited time is the scheduler's run delay: the process was ready to run, and another process had the CPU.  It
 * distinguishes a disturbed part of a measurement from an undisturbed one.
 */
#ifndef BENCH_CPU_H
#define BENCH_CPU_H

#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#define CPU_MAX_THREADS 256

struct watched_process {
    pid_t pid;
    clockid_t clock;
    uint32_t threads;
    int run_delay[CPU_MAX_THREADS]; /* /proc/PID/task/TID/schedstat */
};

struct cpu_split {
    double user; /* seconds */
    double system;
};

/* Watch a process and the threads it has now. */
void cpu_watch(struct watched_process *process, pid_t pid);

int64_t cpu_used_ns(const struct watched_process *process);
int64_t cpu_waited_ns(const struct watched_process *process);
struct cpu_split cpu_split(const struct watched_process *process);

#endif
