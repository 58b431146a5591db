/* poll.c: a task that waits for a descriptor to become ready, by POLL_ADD.
 *
 * This is what trio.lowlevel.wait_readable() and wait_writable() come down to, and with them every socket, pipe and pidfd of
 * a Trio program.  It is a call of the engine (call.h) that is never answered from memory.  While the operation is waited
 * for (`pending`), its slot points to the call and holds a reference to it.
 *
 * A task that waited is rescheduled, and not resumed in place as one of a connection is.  Programs written for Trio rely on
 * the order in which its scheduler runs tasks, often without intent; and with many sockets it costs less, because the next
 * step of such a task is another checkpoint.
 *
 * io_uring reports that the peer has half-closed (POLLRDHUP) whether it was asked for or not.  That says nothing about
 * writing, so it does not end a wait for writability; and since a single poll armed again would complete with the same at
 * once, the wait goes on with a multishot poll, which completes when something changes.  A kernel that has none (before 5.13)
 * refuses it with EINVAL.  There the wait ends as if there were room, as any wait may; the task tries, and waits again.
 */
#include "fastpath.h"

#include <errno.h>
#include <poll.h>

#define RDHUP 0x2000 /* POLLRDHUP, which <poll.h> has for _GNU_SOURCE only */

/* Prepare the operation; its slot takes a reference.  0 or -errno. */
static int arm(gt_call *self, bool multishot)
{
    struct gt_ring *ring = self->proactor->ring;
    int result = self->poll.is_socket
                     ? gt_operation_poll_socket(ring, self->poll.fd, self->poll.events, multishot, &self->poll.key)
                     : gt_operation_poll(ring, self->poll.fd, self->poll.events, multishot, &self->poll.key);
    if (result < 0)
        return result;
    Py_INCREF(self);
    ring->slots[gt_key_slot(self->poll.key)].owner = self;
    self->poll.pending = true;
    self->poll.previous = NULL;
    self->poll.next = self->proactor->polls;
    if (self->poll.next)
        self->poll.next->poll.previous = self;
    self->proactor->polls = self;
    return 0;
}

/* No task waits for the completion any more.  Gives the slot's reference back, which may be the last one. */
void gt_poll_drop(gt_call *self)
{
    self->poll.pending = false;
    if (self->poll.previous)
        self->poll.previous->poll.next = self->poll.next;
    else
        self->proactor->polls = self->poll.next;
    if (self->poll.next)
        self->poll.next->poll.previous = self->poll.previous;
    Py_DECREF(self);
}

/* The same for an operation that is still in flight.  Whatever becomes of the cancel, the operation is abandoned, and its
 * completion is dropped. */
void gt_poll_cancel(gt_call *self)
{
    if (!self->poll.pending)
        return;
    gt_operation_cancel(self->proactor->ring, self->poll.key, true);
    gt_poll_drop(self);
}

bool gt_poll_complete(gt_call *self, const struct io_uring_cqe *cqe)
{
    bool final = gt_completion_is_final(cqe);
    bool half_closed = cqe->res == RDHUP && self->poll.events == POLLOUT;
    if (half_closed && !final)
        return false;
    Py_INCREF(self); /* both of these give a reference back */
    self->poll.result = self->poll.again && cqe->res == -EINVAL ? RDHUP : cqe->res;
    if (final)
        gt_poll_drop(self);
    else
        gt_poll_cancel(self);
    if (half_closed) {
        self->poll.again = true;
        self->poll.result = arm(self, true);
    }
    bool news = self->waiter && self->waiter->task && !self->poll.pending;
    if (news)
        gt_proactor_ready(self->proactor, self->waiter);
    Py_DECREF(self);
    return news;
}

/* Only its completion, or the program, wakes the task. */
static bool has_parked(const gt_call *self) { return self->state == GT_CALL_PARKED; }

static int answer(gt_call *self, PyObject **result)
{
    bool parked = has_parked(self);
    int outcome = parked ? self->poll.result : arm(self, false);
    if (outcome < 0)
        return gt_raise_os_error(-outcome);
    if (parked)
        *result = Py_NewRef(Py_None);
    return parked;
}

/* clang-format off */
static const gt_kind kinds[] = {
    {.name = "wait_readable", .owner = "wait", .is_satisfied = has_parked, .answer = answer, .stopped = gt_poll_cancel, .end = gt_poll_cancel},
    {.name = "wait_writable", .owner = "wait", .is_satisfied = has_parked, .answer = answer, .stopped = gt_poll_cancel, .end = gt_poll_cancel},
};
/* clang-format on */

/* Does a task wait in what the table has for the descriptor?  -1: exception set */
static int is_busy(PyObject *table, PyObject *number)
{
    PyObject *other = PyDict_GetItemWithError(table, number);
    if (!other)
        return PyErr_Occurred() ? -1 : 0;
    if (!Py_IS_TYPE(other, &gt_call_type)) {
        PyErr_SetString(PyExc_TypeError, "the table of waits has something else than waits");
        return -1;
    }
    const gt_waiter *waiter = ((gt_call *)other)->waiter;
    return waiter && waiter->task;
}

PyObject *gt_poll_new(gt_proactor *proactor, PyObject *table, PyObject *number, uint32_t events, bool is_socket)
{
    long fd = PyLong_AsLong(number);
    if (fd != (int)fd)
        PyErr_SetString(PyExc_OverflowError, "no descriptor is so great");
    int busy = PyErr_Occurred() ? -1 : is_busy(table, number);
    if (busy > 0)
        PyErr_SetString(proactor->busy_error, "another task is already reading / writing this fd");
    gt_call *self = busy == 0 ? gt_call_new(&kinds[events & POLLOUT ? 1 : 0], proactor, (PyObject *)proactor) : NULL;
    if (!self)
        return NULL;
    self->poll.fd = (int)fd;
    self->poll.events = events;
    self->poll.is_socket = is_socket;
    if (PyDict_SetItem(table, number, (PyObject *)self) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}
