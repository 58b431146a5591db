/* send.c: one call of an exchange's `send`: what `await` does.
 *
 *     NEW ──drive──> DONE                       the start of a response, or a response that the connection queues at once
 *      └────drive──> BEGUN ──drive──> DONE      the connection, or Python's coroutine, waits
 *                      └──throw/close──> DONE
 *
 * Nothing is done before the awaitable is driven, as in a coroutine: an app may make two of them and await them in any order.
 */
#include "heads.h"

#include "../awaitable.h"

#include <structmember.h>

/* One call of send(). */
typedef struct {
    PyObject_HEAD
    PyObject *exchange, *message; /* until it is done */
    PyObject *awaited;            /* while it waits */
    enum { NEW, BEGUN, DONE } state;
    bool is_usual; /* the connection is what is awaited, and not Python's coroutine */
    bool is_finalized;
} gt_send_call;

/* --- driving --- */

static void finish(gt_send_call *self)
{
    self->state = DONE;
    PyObject *exchange = self->exchange, *message = self->message, *awaited = self->awaited;
    self->exchange = self->message = self->awaited = NULL;
    Py_XDECREF(awaited);
    Py_XDECREF(message);
    Py_XDECREF(exchange);
}

/* The connection has raised: set what the app gets instead. */
static void exchange_error(const gt_send_call *self)
{
    PyObject *error = gt_take_exception(), *exchange = Py_NewRef(self->exchange);
    PyObject *raised = PyObject_CallMethodOneArg(exchange, gt_names.failed, error);
    Py_DECREF(exchange);
    Py_DECREF(error);
    if (raised && PyExceptionInstance_Check(raised)) {
        gt_restore_exception(raised);
        return;
    }
    if (raised)
        PyErr_Format(PyExc_TypeError, "%U() returns an exception, not %R", gt_names.failed, raised);
    Py_XDECREF(raised);
}

/* It is over, by an exception; code that ran may have closed it. */
static void fail(gt_send_call *self)
{
    if (self->state == DONE)
        return;
    if (self->is_usual)
        exchange_error(self);
    PyObject *error = gt_take_exception();
    finish(self);
    gt_restore_exception(error);
}

/* What `await` drives; takes the caller's reference.  NULL with an exception. */
static PyObject *iterator_of(PyObject *awaitable)
{
    if (PyCoro_CheckExact(awaitable))
        return awaitable;
    unaryfunc get_iterator = Py_TYPE(awaitable)->tp_as_async ? Py_TYPE(awaitable)->tp_as_async->am_await : NULL;
    PyObject *iterator = get_iterator ? get_iterator(awaitable) : NULL;
    if (!get_iterator)
        PyErr_Format(PyExc_TypeError, "%s cannot be awaited", Py_TYPE(awaitable)->tp_name);
    Py_DECREF(awaitable);
    return iterator;
}

/* What is to be awaited for the message.  NULL: nothing, or an exception is set. */
static PyObject *awaitable_for(gt_send_call *self, PyObject *exchange, PyObject *message)
{
    PyObject *data, *awaitable = NULL;
    int taken = gt_message_take(exchange, message, &data);
    if (taken == 0)
        return PyObject_CallMethodOneArg(exchange, gt_names.in_python, message);
    if (!data)
        return NULL;
    self->is_usual = true;
    PyObject *below = Py_NewRef(gt_exchange_connection(exchange));
    awaitable = PyObject_CallMethodOneArg(below, gt_names.send, data);
    Py_DECREF(below);
    Py_DECREF(data);
    return awaitable;
}

/* 1: it is done; 0: there is something to drive; -1 with an exception. */
static int begin(gt_send_call *self)
{
    PyObject *exchange = Py_NewRef(self->exchange), *message = Py_NewRef(self->message);
    self->state = BEGUN;
    PyObject *awaitable = awaitable_for(self, exchange, message);
    Py_DECREF(message);
    Py_DECREF(exchange);
    if (!awaitable)
        return PyErr_Occurred() ? -1 : 1;
    PyObject *iterator = iterator_of(awaitable);
    if (!iterator || self->state != BEGUN) { /* it may have been closed meanwhile, by code of the program's */
        if (iterator)
            PyErr_SetString(PyExc_RuntimeError, "this send() was ended while it began");
        Py_XDECREF(iterator);
        return -1;
    }
    self->awaited = iterator;
    return 0;
}

static PySendResult drive(PyObject *object, PyObject *message, PyObject **result)
{
    gt_send_call *self = (gt_send_call *)object;
    *result = NULL;
    if (self->state == DONE || (self->state == BEGUN && !self->awaited)) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse an awaited send(): call it again");
        return PYGEN_ERROR;
    }
    int begun = self->state == NEW ? begin(self) : 0;
    if (begun > 0) {
        finish(self);
        *result = Py_NewRef(Py_None);
        return PYGEN_RETURN;
    }
    if (begun < 0) {
        fail(self);
        return PYGEN_ERROR;
    }
    PyObject *awaited = Py_NewRef(self->awaited);
    PySendResult sent = PyIter_Send(awaited, message, result);
    Py_DECREF(awaited);
    if (sent == PYGEN_RETURN)
        finish(self);
    else if (sent == PYGEN_ERROR)
        fail(self);
    return sent;
}

static PyObject *call_throw(gt_send_call *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (!self->awaited) {
        finish(self);
        return gt_raise_thrown(arguments, count);
    }
    PyObject *awaited = Py_NewRef(self->awaited), *throw = PyObject_GetAttrString(awaited, "throw");
    PyObject *result = throw ? PyObject_Vectorcall(throw, arguments, (size_t)count, NULL) : NULL;
    Py_XDECREF(throw);
    Py_DECREF(awaited);
    if (!result) {
        if (PyErr_ExceptionMatches(PyExc_StopIteration))
            self->is_usual = false; /* it has returned */
        fail(self);
    }
    return result;
}

/* As a coroutine does: what it awaits gets a GeneratorExit, so that a response that is cut off here counts as incomplete. */
static PyObject *call_close(gt_send_call *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *exit = self->awaited ? PyObject_CallNoArgs(PyExc_GeneratorExit) : NULL;
    if (!exit) {
        bool failed = self->awaited != NULL;
        finish(self);
        return failed ? NULL : Py_NewRef(Py_None);
    }
    PyObject *result = call_throw(self, &exit, 1);
    Py_DECREF(exit);
    if (result) {
        Py_DECREF(result);
        PyErr_SetString(PyExc_RuntimeError, "send() ignored GeneratorExit");
        return NULL;
    }
    if (!PyErr_ExceptionMatches(PyExc_GeneratorExit) && !PyErr_ExceptionMatches(PyExc_StopIteration))
        return NULL;
    PyErr_Clear();
    Py_RETURN_NONE;
}

/* --- life --- */

PyObject *gt_send_new(PyObject *exchange, PyObject *message)
{
    gt_send_call *self = PyObject_GC_New(gt_send_call, &gt_send_type);
    if (!self)
        return NULL;
    self->exchange = Py_NewRef(exchange);
    self->message = Py_NewRef(message);
    self->awaited = NULL;
    self->state = NEW;
    self->is_usual = self->is_finalized = false;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static int call_traverse(gt_send_call *self, visitproc visit, void *arg)
{
    Py_VISIT(self->exchange);
    Py_VISIT(self->message);
    Py_VISIT(self->awaited);
    return 0;
}

static int call_clear(gt_send_call *self)
{
    finish(self);
    return 0;
}

/* As the interpreter does for a coroutine; where warnings are errors, no caller could catch one. */
static void call_finalize(PyObject *object)
{
    PyObject *type, *value, *traceback;
    if (((gt_send_call *)object)->state != NEW)
        return;
    PyErr_Fetch(&type, &value, &traceback);
    if (PyErr_WarnEx(PyExc_RuntimeWarning, "coroutine 'HttpExchange.send' was never awaited", 1) < 0)
        PyErr_WriteUnraisable(object);
    PyErr_Restore(type, value, traceback);
}

static void call_dealloc(gt_send_call *self)
{
    if (self->state == NEW && PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0)
        return; /* a hook for warnings has kept it */
    PyObject_GC_UnTrack(self);
    finish(self);
    PyObject_GC_Del(self);
}

static PyMethodDef call_methods[] = {
    {"send", gt_send, METH_O, PyDoc_STR("Resume with a message from Trio.")},
    {"throw", (PyCFunction)(void (*)(void))call_throw, METH_FASTCALL, PyDoc_STR("Raise an exception where it waits.")},
    {"close", (PyCFunction)call_close, METH_NOARGS, PyDoc_STR("End the call.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef call_members[] = {
    {"awaited", T_OBJECT, offsetof(gt_send_call, awaited), READONLY, PyDoc_STR("What it waits for, or None.")},
    {NULL, 0, 0, 0, NULL},
};

static PyAsyncMethods call_async = {
    .am_await = gt_self,
    .am_send = drive,
};

PyTypeObject gt_send_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._heads.Send",
    .tp_basicsize = sizeof(gt_send_call),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = PyDoc_STR("A call of an exchange's send() in progress."),
    .tp_dealloc = (destructor)call_dealloc,
    .tp_finalize = call_finalize,
    .tp_traverse = (traverseproc)call_traverse,
    .tp_clear = (inquiry)call_clear,
    .tp_as_async = &call_async,
    .tp_iter = gt_self,
    .tp_iternext = gt_next,
    .tp_methods = call_methods,
    .tp_members = call_members,
};
