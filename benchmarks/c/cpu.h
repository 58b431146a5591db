/* cpu.h: how much CPU time a process has used, and how long it has waited for a CPU.
 *
 * The time used is read from the process's CPU-time clock, which the scheduler keeps to the nanosecond.  The split into
 * user and system time is kept by sampling in ticks of 10 ms or less on most kernels, so it is only good over seconds,
 * and it is used only as a proportion.
 *
 * The time waited is the scheduler's run delay: ready to run, but not running because another process had the CPU.
 * It distinguishes a disturbed stretch of a measurement from an undisturbed one.
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
