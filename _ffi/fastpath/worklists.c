/* worklists.c: the work lists of a reactor: the streams that want SQEs, and the waiters whose tasks are to be resumed; and how
 * a task is woken.  Everything of the fast path stands on this; the loop that works the lists off is in reactor.c.
 */
#include "fastpath.h"

#include <time.h>
#include <unistd.h>

/* --- turns ---
 *
 * Calls that are answered from memory do not go through the scheduler, and 512 KiB of empty lines are half a million answers:
 * seconds, in which no other task runs.  So a task that has gone on like that for about a millisecond yields with its next
 * call, before that one moves anything.
 *
 * A turn begins when a task waits, when it has yielded, and when the run enters the kernel.  The usual step (a receive that
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

bool gt_reactor_look_at_turn(gt_reactor *reactor)
{
    int64_t now = gt_monotonic_ns();
    int64_t more = 1;
    if (reactor->answers_timed == 0) {
        reactor->turn_began = now;
    } else {
        int64_t elapsed = now - reactor->turn_began;
        if (elapsed >= reactor->turn_ns) {
            gt_reactor_begin_turn(reactor);
            return true;
        }
        more = (reactor->turn_ns - elapsed) / 2 / (elapsed / reactor->answers_timed + 1);
        more = more < 1 ? 1 : more > MOST_ANSWERS ? MOST_ANSWERS : more;
    }
    reactor->answers_left = (uint32_t)more;
    reactor->answers_timed += (uint32_t)more;
    return false;
}

/* --- lists --- */

void gt_reactor_link_wanting(gt_reactor *reactor, gt_stream *stream)
{
    stream->wanting = true;
    stream->next_wanting = NULL;
    if (reactor->wanting_last)
        reactor->wanting_last->next_wanting = stream;
    else
        reactor->wanting_first = stream;
    reactor->wanting_last = stream;
    gt_reactor_wake_guest(reactor);
}

void gt_reactor_link_starved(gt_reactor *reactor, gt_stream *stream)
{
    gt_stream **place = reactor->wanting_starved ? &reactor->wanting_starved->next_wanting : &reactor->wanting_first;
    stream->wanting = true;
    stream->next_wanting = *place;
    *place = stream;
    if (!stream->next_wanting)
        reactor->wanting_last = stream;
    reactor->wanting_starved = stream;
}

void gt_reactor_ready(gt_reactor *reactor, gt_waiter *waiter)
{
    if (waiter->is_ready)
        return;
    Py_INCREF(waiter);
    waiter->is_ready = true;
    waiter->next = NULL;
    if (reactor->ready_last)
        reactor->ready_last->next = waiter;
    else
        reactor->ready_first = waiter;
    reactor->ready_last = waiter;
}

/* The next waiter on the list, now the caller's reference, or NULL. */
gt_waiter *gt_reactor_pop_ready(gt_reactor *reactor)
{
    gt_waiter *waiter = reactor->ready_first;
    if (!waiter)
        return NULL;
    reactor->ready_first = waiter->next;
    if (!reactor->ready_first)
        reactor->ready_last = NULL;
    waiter->is_ready = false;
    return waiter;
}

bool gt_reactor_check_thread(const gt_reactor *reactor)
{
    if (reactor->ring && reactor->ring->dead && !reactor->closed) {
        PyErr_SetString(PyExc_RuntimeError,
                        "this run belongs to the parent process: after a fork, only exec or os._exit can follow");
        return false;
    }
    if (PyThread_get_thread_ident() != reactor->thread) {
        PyErr_SetString(PyExc_RuntimeError,
                        "this connection belongs to a run in another thread; use trio.from_thread.run()");
        return false;
    }
    return true;
}

/* A connection can be dropped in any thread, with its last reference or by the garbage collector. */
void gt_reactor_wake_thread(const gt_reactor *reactor)
{
    const uint64_t one = 1;
    if (PyThread_get_thread_ident() != reactor->thread && !reactor->ring->dead) {
        ssize_t written = write(reactor->wakeup_descriptor, &one, sizeof one);
        (void)written; /* EAGAIN: it is about to wake anyway (eventfd(2)) */
    }
}

/* The host of a guest run may close a connection, drop one, or write to one.  A task that does so is followed by a turn of
 * Trio's loop, which submits what is wanted; the host's code is followed by whatever the host does next. */
void gt_reactor_wake_guest(const gt_reactor *reactor)
{
    if (!reactor->guest || reactor->running || reactor->ring->dead || gt_trio_is_in_task(&reactor->trio))
        return;
    const uint64_t one = 1;
    ssize_t written = write(reactor->wakeup_descriptor, &one, sizeof one); /* EAGAIN: it is about to wake anyway */
    (void)written;
}

int gt_reactor_wake(gt_reactor *reactor, PyObject *task, PyObject *abort, bool in_place)
{
    if (in_place && reactor->in_place) {
        int resumed = gt_trio_resume(&reactor->trio, task, abort);
        if (resumed != 0) {
            reactor->resumed_in_place++;
            return resumed < 0 ? -1 : 0;
        }
    }
    reactor->rescheduled++;
    return gt_trio_reschedule(&reactor->trio, task, abort);
}

int gt_reactor_look_at_clock(gt_reactor *reactor)
{
    if (!reactor->trio.bound)
        return 0;
    PyObject *now = PyObject_CallNoArgs(reactor->trio.current_time);
    if (!now)
        return -1;
    double seconds = PyFloat_AsDouble(now);
    Py_DECREF(now);
    if (seconds == -1.0 && PyErr_Occurred())
        return -1;
    reactor->now = seconds;
    return 0;
}
