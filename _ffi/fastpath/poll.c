/* poll.c: a task that waits for a descriptor to become ready, by POLL_ADD.
 *
 * This is what trio.lowlevel.wait_readable() and wait_writable() come down to, and with them every socket, pipe and pidfd of
 * a Trio program.  The object is three things in one, so that a wait makes few of them: what the task awaits, the abort
 * function that Trio calls to cancel it, and what the operation's slot points to.  While the operation is waited for
 * (`pending`), the slot holds a reference to it.
 *
 * A task that waited is rescheduled, and not resumed in place as one of a connection is.  Programs written for Trio rely on
 * the order in which its scheduler runs tasks, more than they know; and with many sockets it costs less, because what such a
 * task does next is another checkpoint.
 *
 * io_uring reports that the peer has half-closed (POLLRDHUP) whether it was asked for or not.  That says nothing about
 * writing, so it does not end a wait for writability; and since a single poll armed again would complete with the same at
 * once, the wait goes on with a multishot poll, which completes when something changes.  A kernel that has none (before 5.13)
 * refuses it with EINVAL.  There the task is told that it can write, as it may be at any time; it tries, and waits again.
 */
#include "fastpath.h"

#include <errno.h>
#include <poll.h>

#define RDHUP 0x2000 /* POLLRDHUP, which <poll.h> has for _GNU_SOURCE only */

enum { NEW, PARKED, DONE };

PyObject *gt_poll_new(gt_reactor *reactor, int fd, uint32_t events)
{
    gt_poll *self = PyObject_GC_New(gt_poll, &gt_poll_type);
    if (!self)
        return NULL;
    self->reactor = (gt_reactor *)Py_NewRef(reactor);
    self->task = NULL;
    self->previous = self->next = NULL;
    self->ready = (gt_ready){NULL, NULL};
    self->key = 0;
    self->events = events;
    self->fd = fd;
    self->result = 0;
    self->state = NEW;
    self->pending = self->again = false;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

/* Prepare the operation; its slot takes a reference.  0 or -errno. */
static int arm(gt_poll *self, bool multishot)
{
    struct gt_ring *ring = self->reactor->ring;
    int result = gt_operation_poll(ring, self->fd, self->events, multishot, &self->key);
    if (result < 0)
        return result;
    Py_INCREF(self);
    ring->slots[gt_key_slot(self->key)].owner = self;
    self->pending = true;
    self->previous = NULL;
    self->next = self->reactor->polls;
    if (self->next)
        self->next->previous = self;
    self->reactor->polls = self;
    return 0;
}

/* The operation's completion is not waited for any more.  Gives the slot's reference back, which may be the last one. */
static void disarm(gt_poll *self)
{
    self->pending = false;
    if (self->previous)
        self->previous->next = self->next;
    else
        self->reactor->polls = self->next;
    if (self->next)
        self->next->previous = self->previous;
    Py_DECREF(self);
}

/* The same for an operation that is still in flight.  0 or -errno. */
static int cancel(gt_poll *self)
{
    if (!self->pending)
        return 0;
    /* Whatever becomes of the cancel, the operation is abandoned, and what it still brings is dropped. */
    int result = gt_operation_cancel(self->reactor->ring, self->key, true);
    disarm(self);
    return result == -ENOMEM ? result : 0; /* ended already, or with its ring */
}

void gt_poll_drop(gt_poll *self) { disarm(self); }

void gt_poll_cancel(gt_poll *self) { cancel(self); }

bool gt_poll_complete(gt_poll *self, const struct io_uring_cqe *cqe)
{
    bool final = gt_completion_is_final(cqe);
    bool half_closed = cqe->res == RDHUP && self->events == POLLOUT;
    if (half_closed && !final)
        return false;
    Py_INCREF(self); /* disarm() and cancel() give a reference back */
    self->result = self->again && cqe->res == -EINVAL ? RDHUP : cqe->res;
    if (final)
        disarm(self);
    else
        gt_poll_cancel(self);
    if (half_closed) {
        self->again = true;
        self->result = arm(self, true);
    }
    bool news = self->task && !self->pending;
    if (news)
        gt_reactor_ready(self->reactor, &self->ready, (PyObject *)self);
    Py_DECREF(self);
    return news;
}

int gt_poll_wake(gt_poll *self)
{
    PyObject *task = self->task;
    if (!task)
        return 0;
    self->task = NULL;
    int result = gt_reactor_wake(self->reactor, task, (PyObject *)self, false);
    Py_DECREF(task);
    return result;
}

static PySendResult start(gt_poll *self, PyObject **result)
{
    gt_trio *trio = &self->reactor->trio;
    PyObject *task = gt_trio_current_task(trio);
    if (!task)
        return PYGEN_ERROR;
    PyObject *trap = PyObject_CallOneArg(trio->trap_type, (PyObject *)self);
    if (!trap)
        return PYGEN_ERROR;
    int armed = arm(self, false);
    if (armed < 0) {
        Py_DECREF(trap);
        errno = -armed;
        PyErr_SetFromErrno(PyExc_OSError);
        return PYGEN_ERROR;
    }
    Py_XSETREF(self->task, Py_NewRef(task));
    self->state = PARKED;
    *result = trap;
    return PYGEN_NEXT;
}

static PySendResult drive(PyObject *object, PyObject *message, PyObject **result)
{
    gt_poll *self = (gt_poll *)object;
    *result = NULL;
    if (self->state == NEW) {
        PySendResult sent = gt_reactor_check_thread(self->reactor) ? start(self, result) : PYGEN_ERROR;
        if (sent != PYGEN_NEXT)
            self->state = DONE;
        return sent;
    }
    if (self->state == DONE) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse an awaited poll");
        return PYGEN_ERROR;
    }
    self->state = DONE;
    /* `woken` is one object for all wake-ups, and an Outcome can be unwrapped once. */
    if (message != Py_None && message != self->reactor->trio.woken) {
        PyObject *value = PyObject_CallMethod(message, "unwrap", NULL);
        if (!value)
            return PYGEN_ERROR;
        Py_DECREF(value);
    }
    if (self->result < 0) {
        errno = -self->result;
        PyErr_SetFromErrno(PyExc_OSError);
        return PYGEN_ERROR;
    }
    *result = Py_NewRef(Py_None);
    return PYGEN_RETURN;
}

/* Stop waiting: the task that waited, for the caller to reschedule, or None. */
static PyObject *poll_stop(gt_poll *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *task = self->task ? self->task : Py_NewRef(Py_None);
    self->task = NULL;
    cancel(self); /* out of memory, the poll stays in flight, and is dropped when it completes */
    return task;
}

static PyObject *poll_abort(gt_poll *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"raise_cancel", NULL};
    PyObject *raise_cancel;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:abort", names, &raise_cancel))
        return NULL;
    PyObject *succeeded = Py_NewRef(self->reactor->trio.abort_succeeded);
    PyObject *task = poll_stop(self, NULL);
    if (!task) {
        Py_DECREF(succeeded);
        return NULL;
    }
    Py_DECREF(task);
    return succeeded;
}

static PyObject *poll_close(gt_poll *self, PyObject *Py_UNUSED(ignored))
{
    self->state = DONE;
    PyObject *task = poll_stop(self, NULL);
    Py_XDECREF(task);
    return task ? Py_NewRef(Py_None) : NULL;
}

static PyObject *poll_throw(gt_poll *self, PyObject *args)
{
    PyObject *closed = poll_close(self, NULL);
    if (!closed)
        return NULL;
    Py_DECREF(closed);
    return gt_raise_thrown(args);
}

static PyObject *poll_send(PyObject *self, PyObject *message) { return gt_drive_by_method(drive, self, message); }

static PyObject *poll_next(PyObject *self) { return gt_drive_by_method(drive, self, Py_None); }

static PyObject *poll_self(PyObject *self) { return Py_NewRef(self); }

static PyObject *get_waits(gt_poll *self, void *Py_UNUSED(closure)) { return PyBool_FromLong(self->task != NULL); }

static int poll_traverse(gt_poll *self, visitproc visit, void *arg)
{
    Py_VISIT(self->reactor);
    Py_VISIT(self->task);
    return 0;
}

static int poll_clear(gt_poll *self)
{
    Py_CLEAR(self->task);
    return 0;
}

static void poll_finalize(gt_poll *self)
{
    if (self->state == NEW)
        gt_warn_never_awaited((PyObject *)self, self->events & POLLOUT ? "wait_writable" : "wait_readable");
}

static void poll_dealloc(gt_poll *self)
{
    if (self->state == NEW && PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0)
        return; /* a hook for warnings has kept it */
    PyObject_GC_UnTrack(self);
    poll_clear(self);
    Py_CLEAR(self->reactor);
    PyObject_GC_Del(self);
}

static PyMethodDef poll_methods[] = {
    {"send", poll_send, METH_O, PyDoc_STR("Resume with a message from Trio.")},
    {"throw", (PyCFunction)poll_throw, METH_VARARGS, PyDoc_STR("End the wait with an exception.")},
    {"close", (PyCFunction)poll_close, METH_NOARGS, PyDoc_STR("End the wait.")},
    {"stop", (PyCFunction)poll_stop, METH_NOARGS,
     PyDoc_STR("stop($self, /)\n--\n\nStop waiting: the task that waited, to be rescheduled by the caller, or None.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef poll_getset[] = {
    {"waits", (getter)get_waits, NULL, PyDoc_STR("Whether a task waits in it."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyAsyncMethods poll_async = {
    .am_await = poll_self,
    .am_send = drive,
};

PyTypeObject gt_poll_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._fastpath.Poll",
    .tp_basicsize = sizeof(gt_poll),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = PyDoc_STR("A wait for a descriptor to become ready."),
    .tp_dealloc = (destructor)poll_dealloc,
    .tp_finalize = (destructor)poll_finalize,
    .tp_traverse = (traverseproc)poll_traverse,
    .tp_clear = (inquiry)poll_clear,
    .tp_call = (ternaryfunc)poll_abort,
    .tp_as_async = &poll_async,
    .tp_iter = poll_self,
    .tp_iternext = poll_next,
    .tp_methods = poll_methods,
    .tp_getset = poll_getset,
};
