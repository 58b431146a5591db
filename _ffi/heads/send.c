/* send.c: one call of an exchange's `send`: what `await` does.
 *
 *     NEW ──drive──> DONE                       the start of a response, or a response that the connection queues at once
 *      └────drive──> BEGUN ──drive──> DONE      the connection, or Python's coroutine, waits
 *                      └──throw/close──> DONE
 *
 * It is as a coroutine is: nothing is done before it is driven, so an app may make two of them and await them in any order; one
 * task at a time awaits it, and code that runs in it cannot end it; and it ends its response where it is closed, or dropped.
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
    bool is_usual;  /* the connection is what is awaited, and not Python's coroutine */
    bool is_driven; /* its code runs, or that of what it awaits */
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

/* It is over, by an exception. */
static void fail(gt_send_call *self)
{
    if (self->is_usual)
        exchange_error(self);
    PyObject *error = gt_never_stop(gt_take_exception());
    finish(self);
    gt_restore_exception(error);
}

/* A generator that @types.coroutine made; -1 with an exception. */
static int is_generator_to_await(PyObject *object)
{
    if (!PyGen_CheckExact(object))
        return 0;
    PyObject *code = PyObject_GetAttrString(object, "gi_code");
    int found = code ? (((PyCodeObject *)code)->co_flags & CO_ITERABLE_COROUTINE) != 0 : -1;
    Py_XDECREF(code);
    return found;
}

/* What `await` drives; takes the caller's reference.  NULL with an exception. */
static PyObject *iterator_of(PyObject *awaitable)
{
    int is_iterator = PyCoro_CheckExact(awaitable) ? 1 : is_generator_to_await(awaitable);
    if (is_iterator > 0)
        return awaitable;
    unaryfunc get_iterator = Py_TYPE(awaitable)->tp_as_async ? Py_TYPE(awaitable)->tp_as_async->am_await : NULL;
    PyObject *iterator = get_iterator && is_iterator == 0 ? get_iterator(awaitable) : NULL;
    if (!get_iterator && is_iterator == 0)
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
    self->state = BEGUN;
    PyObject *awaitable = awaitable_for(self, self->exchange, self->message);
    if (!awaitable)
        return PyErr_Occurred() ? -1 : 1;
    self->awaited = iterator_of(awaitable);
    return self->awaited ? 0 : -1;
}

static PySendResult resume(gt_send_call *self, PyObject *message, PyObject **result)
{
    int begun = self->state == NEW ? begin(self) : 0;
    PySendResult sent = begun < 0 ? PYGEN_ERROR : PYGEN_RETURN;
    if (begun == 0)
        sent = PyIter_Send(self->awaited, message, result);
    if (sent == PYGEN_ERROR)
        fail(self);
    if (sent != PYGEN_RETURN)
        return sent;
    Py_XSETREF(*result, Py_NewRef(Py_None)); /* whatever the connection answers */
    finish(self);
    return PYGEN_RETURN;
}

/* Code that runs in it neither resumes nor ends it.  False with an exception. */
static bool is_at_rest(const gt_send_call *self)
{
    if (self->is_driven)
        PyErr_SetString(PyExc_ValueError, "this send() is being driven already");
    return !self->is_driven;
}

static PySendResult drive(PyObject *object, PyObject *message, PyObject **result)
{
    gt_send_call *self = (gt_send_call *)object;
    *result = NULL;
    if (!is_at_rest(self))
        return PYGEN_ERROR;
    if (self->state == DONE) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse an awaited send(): call it again");
        return PYGEN_ERROR;
    }
    self->is_driven = true;
    PySendResult sent = resume(self, message, result);
    self->is_driven = false;
    return sent;
}

static PyObject *call_await(PyObject *object)
{
    const gt_send_call *self = (gt_send_call *)object;
    if (self->state == BEGUN) {
        PyErr_SetString(PyExc_RuntimeError, "this send() is being awaited already");
        return NULL;
    }
    return Py_NewRef(object);
}

/* Raise an exception in what is awaited, as a coroutine does: a GeneratorExit closes it, and an iterator may lack the method. */
static PyObject *throw_below(PyObject *awaited, PyObject *const *arguments, Py_ssize_t count)
{
    bool closes = count > 0 && PyErr_GivenExceptionMatches(arguments[0], PyExc_GeneratorExit);
    PyObject *method = PyObject_GetAttrString(awaited, closes ? "close" : "throw");
    if (!method && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        return gt_raise_thrown(arguments, count);
    }
    PyObject *result = method ? PyObject_Vectorcall(method, arguments, closes ? 0 : (size_t)count, NULL) : NULL;
    Py_XDECREF(method);
    if (!result || !closes)
        return result;
    Py_DECREF(result);
    return gt_raise_thrown(arguments, count);
}

static PyObject *call_throw(gt_send_call *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (!is_at_rest(self))
        return NULL;
    if (!self->awaited) {
        finish(self);
        return gt_raise_thrown(arguments, count);
    }
    self->is_driven = true;
    PyObject *result = throw_below(self->awaited, arguments, count);
    if (!result && PyErr_ExceptionMatches(PyExc_StopIteration)) { /* it has returned */
        PyErr_Clear();
        finish(self);
        PyErr_SetNone(PyExc_StopIteration);
    } else if (!result) {
        fail(self);
    }
    self->is_driven = false;
    return result;
}

/* As a coroutine does: what it awaits gets a GeneratorExit, so that a response that is cut off here counts as incomplete. */
static PyObject *call_close(gt_send_call *self, PyObject *Py_UNUSED(ignored))
{
    if (!is_at_rest(self))
        return NULL;
    if (!self->awaited) {
        finish(self);
        Py_RETURN_NONE;
    }
    (void)call_throw(self, &PyExc_GeneratorExit, 1); /* always NULL: nothing goes on behind a GeneratorExit */
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
    self->is_usual = self->is_driven = false;
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
    gt_send_call *self = (gt_send_call *)object;
    PyObject *type, *value, *traceback;
    if (self->state == DONE)
        return;
    PyErr_Fetch(&type, &value, &traceback);
    if (self->state == NEW) {
        if (PyErr_WarnEx(PyExc_RuntimeWarning, "coroutine 'HttpExchange.send' was never awaited", 1) < 0)
            PyErr_WriteUnraisable(object);
    } else {
        PyObject *closed = call_close(self, NULL);
        if (!closed)
            PyErr_WriteUnraisable(object);
        Py_XDECREF(closed);
    }
    PyErr_Restore(type, value, traceback);
}

static void call_dealloc(gt_send_call *self)
{
    if (self->state != DONE && PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0)
        return; /* a hook for warnings, or what was closed, has kept it */
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
    .am_await = call_await,
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
