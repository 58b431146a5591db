/* socket_call.c: a call of a socket that may have to wait.
 *
 * Stands for, in trio/_socket.py:
 *     _SocketType._nonblocking_helper, with _try_sync, from its beginning to its end; socket_method.c has what begins it
 *
 *     Trio                                        here
 *     -----------------------------------------   ------------------------------------------------------------------
 *     checkpoint_if_cancelled()                   when cancelled, Trio's own code does the whole call
 *     fn(self._sock, *args, **kwargs)             socket_attempt.c
 *     it returned or raised:                      the same; the result or the error is kept meanwhile
 *       cancel_shielded_checkpoint()
 *     BlockingIOError: wait_readable() or         the ring's poll, epoll.c, or on any other I/O manager Trio's
 *       wait_writable(), then again               wait_readable() or wait_writable()
 *
 * Nothing is read before it is asked for, so whatever else is done with the socket (MSG_PEEK, dup, notify_closing) finds it
 * as ever.
 *
 *     READY ──drive──> YIELDED ──drive──> DONE       it could be done at once
 *      └─────drive──> WAITING ──drive──> DONE        it had to wait, perhaps more than once
 *     a stream's send goes from the end of either to the beginning, until all is sent
 */
#include "socket_call.h"
#include "epoll.h"
#include "io_manager.h"

enum { READY, YIELDED, WAITING, DONE };

#define FREE_LIST_SIZE 256
static tc_socket_call *free_list[FREE_LIST_SIZE];
static int free_count;

/* --- life --- */

tc_socket_call *tc_socket_call_new(enum tc_call call, PyObject *sock, bool writes)
{
    tc_socket_call *self;
    if (free_count > 0) {
        self = free_list[--free_count];
        PyObject_Init((PyObject *)self, &tc_socket_call_type);
    } else if (!(self = PyObject_GC_New(tc_socket_call, &tc_socket_call_type))) {
        return NULL;
    }
    memset((char *)self + sizeof(PyObject), 0, sizeof *self - sizeof(PyObject));
    self->sock = Py_NewRef(sock);
    self->call = (uint8_t)call;
    self->writes = writes;
    self->state = READY;
    PyObject_GC_Track(self);
    return self;
}

/* The call is over: what it holds of others is let go.  No exception may be set. */
static int finish(tc_socket_call *self)
{
    self->state = DONE;
    if (self->has_view) {
        self->has_view = false;
        PyBuffer_Release(&self->view);
    }
    Py_CLEAR(self->waiter);
    PyObject *detector = self->detector;
    if (!detector)
        return 0;
    self->detector = NULL;
    int result = PyObject_SetAttr(detector, tc_names._held, Py_False);
    Py_DECREF(detector);
    return result;
}

static int call_traverse(tc_socket_call *self, visitproc visit, void *arg)
{
    Py_VISIT(self->sock);
    Py_VISIT(self->function);
    Py_VISIT(self->arguments);
    Py_VISIT(self->names);
    Py_VISIT(self->data);
    Py_VISIT(self->waiter);
    Py_VISIT(self->result);
    Py_VISIT(self->error);
    Py_VISIT(self->detector);
    if (self->has_view)
        Py_VISIT(self->view.obj);
    return 0;
}

static int call_clear(tc_socket_call *self)
{
    self->state = DONE;
    if (self->has_view) {
        self->has_view = false;
        PyBuffer_Release(&self->view);
    }
    Py_CLEAR(self->function);
    Py_CLEAR(self->arguments);
    Py_CLEAR(self->names);
    Py_CLEAR(self->data);
    Py_CLEAR(self->waiter);
    Py_CLEAR(self->result);
    Py_CLEAR(self->error);
    Py_CLEAR(self->detector);
    return 0;
}

static void call_dealloc(tc_socket_call *self)
{
    PyObject_GC_UnTrack(self);
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (finish(self) < 0)
        PyErr_WriteUnraisable(NULL); /* what names this object would bring it back to life */
    PyErr_Restore(type, value, traceback);
    call_clear(self);
    Py_CLEAR(self->sock);
    if (free_count < FREE_LIST_SIZE)
        free_list[free_count++] = self;
    else
        PyObject_GC_Del(self);
}

/* --- waiting --- */

/* Before the wait, and before it ends: what is waited with.  0 or -1 */
static int make_waiter(tc_socket_call *self, PyObject *task)
{
    PyObject *runner = tc_get(tc_core.task.runner, task), *manager = tc_get(tc_core.runner.io_manager, runner);
    int descriptor = tc_descriptor_of(self->sock);
    PyObject *waiter;
    if (tc_core.in.epoll && descriptor >= 0 && tc_epoll_is_manager(manager)) {
        waiter = tc_epoll_wait(descriptor, self->writes, task);
    } else if (descriptor >= 0 && tc_ring_is_manager(manager)) {
        Py_INCREF(manager);
        waiter = tc_ring_wait(manager, descriptor, self->writes, self->call != TC_OTHER);
        Py_DECREF(manager);
    } else {
        waiter = PyObject_CallOneArg(self->writes ? tc_core.wait_writable : tc_core.wait_readable, self->sock);
    }
    Py_XSETREF(self->waiter, waiter);
    return waiter ? 0 : -1;
}

PyObject *tc_may_call(PyObject *socket)
{
    if (!Py_IS_TYPE(socket, tc_core.socket_type))
        return NULL;
    PyObject *task = tc_current_task();
    if (!task)
        return NULL;
    int cancelled = tc_is_cancelled(task);
    if (cancelled < 0)
        PyErr_Clear();
    return cancelled == 0 ? task : NULL;
}

PyObject *tc_socket_of(PyObject *socket)
{
    PyObject *sock = PyObject_GetAttr(socket, tc_names._sock);
    if (!sock)
        PyErr_Clear();
    return sock;
}

PyObject *tc_socket_call_begin(tc_socket_call *self, PyObject *task)
{
    if (tc_add(tc_core.task.cancel_points, task, 1) < 0 || (tc_attempt(self) == 0 && make_waiter(self, task) < 0))
        Py_CLEAR(self);
    return (PyObject *)self;
}

/* --- driving --- */

/* The end, with the exception that is set. */
static PySendResult fail(tc_socket_call *self)
{
    PyObject *exception = gt_take_exception();
    if (finish(self) < 0)
        PyErr_WriteUnraisable((PyObject *)self);
    if (self->stream && PyErr_GivenExceptionMatches(exception, PyExc_OSError)) {
        PyObject *translated = PyObject_CallOneArg(tc_core.translate, exception);
        if (!translated) {
            Py_DECREF(exception);
            return PYGEN_ERROR;
        }
        Py_SETREF(exception, translated);
    }
    gt_restore_exception(exception);
    return PYGEN_ERROR;
}

static PySendResult succeed(tc_socket_call *self, PyObject **result)
{
    PyObject *value = self->result;
    self->result = NULL;
    if (self->call == TC_SEND && self->stream)
        Py_XSETREF(value, Py_NewRef(Py_None));
    if (finish(self) < 0) {
        Py_XDECREF(value);
        return PYGEN_ERROR;
    }
    if (self->iterates && PyBytes_GET_SIZE(value) == 0) {
        Py_DECREF(value);
        PyErr_SetNone(PyExc_StopAsyncIteration);
        return PYGEN_ERROR;
    }
    *result = value;
    return PYGEN_RETURN;
}

/* A stream's send of the next piece: what checkpoint_if_cancelled() raises is raised by it.  0 or -1 */
static int begin_next(tc_socket_call *self)
{
    PyObject *task = tc_current_task();
    int cancelled = task ? tc_is_cancelled(task) : 1;
    if (cancelled < 0)
        return -1;
    self->state = READY;
    if (cancelled) {
        Py_XSETREF(self->waiter, PyObject_CallNoArgs(tc_core.checkpoint_if_cancelled));
        return self->waiter ? 0 : -1;
    }
    if (tc_add(tc_core.task.cancel_points, task, 1) < 0)
        return -1;
    return tc_attempt(self) == 0 ? make_waiter(self, task) : 0;
}

/* An attempt was made, and there is no schedule point any more before its end: go on, or end.  NEXT: go on. */
static PySendResult conclude(tc_socket_call *self, PyObject **result)
{
    if (self->error) {
        gt_restore_exception(self->error);
        self->error = NULL;
        return fail(self);
    }
    if (self->has_view && self->offset < self->view.len)
        return begin_next(self) < 0 ? fail(self) : PYGEN_NEXT;
    return succeed(self, result);
}

/* Code of the program that ran while the call was resumed has ended the call. */
static PySendResult fail_ended(tc_socket_call *self)
{
    PyErr_SetString(PyExc_RuntimeError, "this call was ended while it was resumed");
    return fail(self);
}

/* Drive what is waited for.  NEXT: it waits, and *result is what to yield; RETURN: it has ended, now or with an exception that
 * was thrown into it */
static PySendResult drive_waiter(tc_socket_call *self, PyObject *message, PyObject **result)
{
    if (!self->waiter)
        return PYGEN_RETURN;
    PyObject *waiter = Py_NewRef(self->waiter);
    PySendResult sent = PyIter_Send(waiter, message, result);
    Py_DECREF(waiter);
    if (sent == PYGEN_RETURN) {
        Py_CLEAR(*result);
        Py_CLEAR(self->waiter);
    }
    return sent;
}

static PySendResult drive_waiting(tc_socket_call *self, PyObject *message, PyObject **result)
{
    for (;;) {
        PySendResult sent = drive_waiter(self, message, result);
        if (sent != PYGEN_RETURN)
            return sent == PYGEN_NEXT ? sent : fail(self);
        if (self->state == DONE)
            return fail_ended(self);
        if (tc_attempt(self) == 1)
            return conclude(self, result);
        PyObject *task = tc_current_task();
        if (!task || make_waiter(self, task) < 0) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_RuntimeError, "must be called from async context");
            return fail(self);
        }
        message = Py_None;
    }
}

static PySendResult drive(PyObject *object, PyObject *message, PyObject **result)
{
    tc_socket_call *self = (tc_socket_call *)object;
    *result = NULL;
    PySendResult sent;
    if (self->state == DONE) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return PYGEN_ERROR;
    }
    if (self->state == YIELDED) {
        PyObject *value = tc_unwrap(message);
        if (!value)
            return fail(self);
        Py_DECREF(value);
        sent = self->state == YIELDED ? conclude(self, result) : fail_ended(self);
    } else if (self->state == WAITING) {
        sent = drive_waiting(self, message, result);
    } else {
        sent = PYGEN_NEXT;
    }
    while (sent == PYGEN_NEXT && !*result) { /* READY: another attempt was made */
        if (!self->waiter) {
            self->state = YIELDED;
            *result = Py_NewRef(tc_core.checkpoint_message);
            return PYGEN_NEXT;
        }
        self->state = WAITING;
        sent = drive_waiting(self, Py_None, result);
    }
    return sent;
}

static PyObject *call_throw(tc_socket_call *self, PyObject *const *arguments, Py_ssize_t count)
{
    PyObject *yielded = NULL;
    if (self->waiter) {
        PyObject *waiter = Py_NewRef(self->waiter);
        yielded = tc_throw_into(waiter, arguments, count);
        Py_DECREF(waiter);
        if (!yielded && PyErr_ExceptionMatches(PyExc_StopIteration)) { /* it took the exception, and is over */
            PyErr_Clear();
            Py_CLEAR(self->waiter);
            if (self->state == READY)
                self->state = WAITING; /* another attempt is to be made, as behind any wait */
            return gt_next((PyObject *)self);
        }
    } else {
        gt_raise_thrown(arguments, count);
    }
    if (!yielded)
        fail(self);
    return yielded;
}

static PyObject *call_close(tc_socket_call *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *waiter = self->waiter;
    self->waiter = NULL;
    self->state = DONE; /* code that runs at the end of what is awaited may drive this call */
    PyObject *closed = waiter ? PyObject_CallMethodNoArgs(waiter, tc_names.close) : Py_NewRef(Py_None);
    Py_XDECREF(waiter);
    PyObject *exception = closed ? NULL : gt_take_exception();
    Py_XDECREF(closed);
    if (finish(self) < 0) {
        Py_XDECREF(exception);
        return NULL;
    }
    if (exception) {
        gt_restore_exception(exception);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef call_methods[] = {
    {"send", gt_send, METH_O, PyDoc_STR("Resume with a message from Trio.")},
    {"throw", (PyCFunction)call_throw, METH_FASTCALL, PyDoc_STR("End the call with an exception.")},
    {"close", (PyCFunction)call_close, METH_NOARGS, PyDoc_STR("End the call.")},
    {NULL, NULL, 0, NULL},
};

static PyAsyncMethods call_async = {
    .am_await = gt_self,
    .am_send = drive,
};

PyTypeObject tc_socket_call_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._trio_core.SocketCall",
    .tp_basicsize = sizeof(tc_socket_call),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = PyDoc_STR("A call in progress on a Trio socket."),
    .tp_dealloc = (destructor)call_dealloc,
    .tp_traverse = (traverseproc)call_traverse,
    .tp_clear = (inquiry)call_clear,
    .tp_as_async = &call_async,
    .tp_iter = gt_self,
    .tp_iternext = gt_next,
    .tp_methods = call_methods,
};
