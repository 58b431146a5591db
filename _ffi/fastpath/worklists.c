/* worklists.c: the work lists of a proactor: the streams that want SQEs, and the waiters whose tasks are to be resumed; and how
 * a task is woken.  Everything of the fast path stands on this; the loop that works the lists off is in reaping.c.
 */
#include "fastpath.h"

#include <time.h>
#include <unistd.h>

/* --- time slices ---
 *
 * Calls that are answered from memory do not go through the scheduler, and 512 KiB of empty lines are half a million answers:
 * seconds, in which no other task runs.  So a task that has gone on like that for about a millisecond yields with its next
 * call, before that one moves anything.
 *
 * A time slice begins when a task waits, when it has yielded, and when the run enters the kernel.  The usual step (a receive that
 * has waited, a send, the next receive) has two calls, and ends before it looks at the clock at all: it costs one decrement
 * a call.  From then on the clock is looked at after as many calls as half of the time that is left is good for, at the pace
 * of those before: after each one of a handler that computes for a tenth of a millisecond, and not for every line of one
 * that does next to nothing.
 */

#define MOST_ANSWERS 64

int64_t gt_monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

GT_COLD bool gt_proactor_check_slice(gt_proactor *proactor)
{
    int64_t now = gt_monotonic_ns();
    int64_t more = 1;
    if (proactor->answers_timed == 0) {
        proactor->slice_began = now;
    } else {
        int64_t elapsed = now - proactor->slice_began;
        if (elapsed >= proactor->slice_ns) {
            gt_proactor_begin_slice(proactor);
            return true;
        }
        more = (proactor->slice_ns - elapsed) / 2 / (elapsed / proactor->answers_timed + 1);
        more = more < 1 ? 1 : more > MOST_ANSWERS ? MOST_ANSWERS : more;
    }
    proactor->answers_left = (uint32_t)more;
    proactor->answers_timed += (uint32_t)more;
    return false;
}

/* --- lists --- */

void gt_proactor_link_wanting(gt_proactor *proactor, gt_stream *stream)
{
    stream->wanting = true;
    stream->next_wanting = NULL;
    if (proactor->wanting_last)
        proactor->wanting_last->next_wanting = stream;
    else
        proactor->wanting_first = stream;
    proactor->wanting_last = stream;
    gt_proactor_wake_guest(proactor);
}

void gt_proactor_link_starved(gt_proactor *proactor, gt_stream *stream)
{
    gt_stream **place = proactor->wanting_starved ? &proactor->wanting_starved->next_wanting : &proactor->wanting_first;
    stream->wanting = true;
    stream->next_wanting = *place;
    *place = stream;
    if (!stream->next_wanting)
        proactor->wanting_last = stream;
    proactor->wanting_starved = stream;
}

void gt_proactor_ready(gt_proactor *proactor, gt_waiter *waiter)
{
    if (waiter->is_ready)
        return;
    Py_INCREF(waiter);
    waiter->is_ready = true;
    waiter->next = NULL;
    if (proactor->ready_last)
        proactor->ready_last->next = waiter;
    else
        proactor->ready_first = waiter;
    proactor->ready_last = waiter;
}

/* The next waiter on the list, now the caller's reference, or NULL. */
gt_waiter *gt_proactor_pop_ready(gt_proactor *proactor)
{
    gt_waiter *waiter = proactor->ready_first;
    if (!waiter)
        return NULL;
    proactor->ready_first = waiter->next;
    if (!proactor->ready_first)
        proactor->ready_last = NULL;
    waiter->is_ready = false;
    return waiter;
}

GT_COLD bool gt_proactor_refuse_thread(const gt_proactor *proactor)
{
    PyErr_SetString(PyExc_RuntimeError,
                    proactor->ring && proactor->ring->dead && !proactor->closed
                        ? "this run belongs to the parent process: after a fork, only exec or os._exit can follow"
                        : "this connection belongs to a run in another thread; use trio.from_thread.run()");
    return false;
}

/* A connection can be dropped in any thread, with its last reference or by the garbage collector. */
void gt_proactor_wake_thread(const gt_proactor *proactor)
{
    const uint64_t one = 1;
    if (PyThread_get_thread_ident() != proactor->thread && !proactor->ring->dead) {
        ssize_t written = write(proactor->wakeup_descriptor, &one, sizeof one);
        (void)written; /* EAGAIN: it is about to wake anyway (eventfd(2)) */
    }
}

/* The host of a guest run may close a connection, drop one, or write to one.  A task that does so is followed by a turn of
 * Trio's loop, which submits what is wanted; the host's code is followed by whatever the host does next. */
void gt_proactor_wake_guest(const gt_proactor *proactor)
{
    if (!proactor->guest || proactor->running || proactor->ring->dead || gt_trio_is_in_task(&proactor->trio))
        return;
    const uint64_t one = 1;
    ssize_t written = write(proactor->wakeup_descriptor, &one, sizeof one); /* EAGAIN: it is about to wake anyway */
    (void)written;
}

int gt_proactor_wake(gt_proactor *proactor, PyObject *task, gt_waiter *waiter, bool in_place)
{
    if (in_place && proactor->in_place) {
        int resumed = gt_trio_resume(&proactor->trio, task, waiter);
        if (!GT_UNLIKELY(resumed == 0)) {
            proactor->resumed_in_place++;
            return resumed < 0 ? -1 : 0;
        }
    }
    proactor->rescheduled++;
    return gt_trio_reschedule(&proactor->trio, task, (PyObject *)waiter);
}

int gt_proactor_look_at_clock(gt_proactor *proactor)
{
    if (!proactor->trio.bound)
        return 0;
    PyObject *now = PyObject_CallNoArgs(proactor->trio.current_time);
    if (!now)
        return -1;
    double seconds = PyFloat_AsDouble(now);
    Py_DECREF(now);
    if (seconds == -1.0 && PyErr_Occurred())
        return -1;
    proactor->now = seconds;
    return 0;
}
