/* wait.h: what a task awaits at a schedule point, or at one of Trio's queues: a parking lot, a lock, a channel, a nursery, a
 * descriptor. */
#ifndef GAIN_TRIO_WAIT_H
#define GAIN_TRIO_WAIT_H

#include "core.h"

typedef struct tc_wait tc_wait;

/* What one sort of wait does in its own way.  Each file has a table row for each of its sorts. */
typedef struct {
    /* The wait is cancelled: take the task out of the queue.  Returns one of Trio's Abort values; NULL: exception set. */
    PyObject *(*abort)(tc_wait *self, PyObject *raise_cancel);
    /* The task goes on, with what it was resumed with; takes the reference.  NULL: with the exception that is set.  Returns
     * what the call returns, or NULL with an exception set.  Without this function a call returns None. */
    PyObject *(*finish)(tc_wait *self, PyObject *result);
    /* The wait is driven for the first time, before the task is parked: no code of the program runs between the two.  0; -1:
     * exception set, and the wait is over. */
    int (*begin)(tc_wait *self);
} tc_wait_kind;

struct tc_wait {
    PyObject_HEAD
    const tc_wait_kind *kind;
    PyObject *message; /* what is yielded first; NULL once it has been */
    PyObject *owner;   /* the lot, the lock, the channel */
    PyObject *task;    /* the one that waits; NULL for a call that does not park its task */
    PyObject *value;   /* what a call that does not park its task returns */
    int descriptor;    /* that is waited for; in epoll.c only */
    uint8_t state;
};

/* A call that yields `message`, to which this takes the reference; NULL stands for the exception that is set. */
PyObject *tc_wait_yield(const tc_wait_kind *kind, PyObject *message);

/* A call that has been done: a schedule point, and then it returns `value`, or what finish() makes of it. */
PyObject *tc_wait_pass(const tc_wait_kind *kind, PyObject *owner, PyObject *value);
/* A call that parks the task.  The caller has put it in the queue, as Trio does: making this may collect garbage, and a
 * finalizer that wakes who waits finds the task there. */
PyObject *tc_wait_park(const tc_wait_kind *kind, PyObject *owner, PyObject *task);
/* Take a task that cannot be parked out of a set or a dict, in which it may be no more.  Keeps the exception that is set. */
void tc_wait_withdraw(PyObject *queue, PyObject *task);

/* For a kind's abort(): set.remove(item), and then Abort.SUCCEEDED */
PyObject *tc_wait_leave_set(PyObject *set, PyObject *item);
PyObject *tc_wait_leave_dict(PyObject *dict, PyObject *item);

int tc_remove(PyObject *set, PyObject *item); /* 0; -1: exception set, a KeyError when it is not there */
/* Take the first key and its value, owned, out of an OrderedDict that is not empty.  0 or -1 */
int tc_pop_first(PyObject *dict, PyObject **key, PyObject **value);
/* trio.lowlevel.reschedule(task, outcome), or without an outcome for NULL.  0 or -1 */
int tc_wake(PyObject *task, PyObject *outcome);
/* The current task if nothing is cancelled, borrowed; NULL without an exception: Trio has to do it. */
PyObject *tc_free_task(void);

#endif
