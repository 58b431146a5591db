/* awaitable.h: what every awaitable of the compiled modules does in the same way, whatever it waits for.
 *
 * Python drives one in three ways (am_send, __next__, send), depending on its version and on whether it is being traced.
 */
#ifndef GAIN_TRIO_AWAITABLE_H
#define GAIN_TRIO_AWAITABLE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "exceptions.h"

#include <stdbool.h>

/* The StopIteration that will carry the next answer, or NULL. */
static inline PyObject **gt_spare_stop(void)
{
    static PyObject *spare;
    return &spare;
}

/* Make it.  0, or -1 with an exception. */
static inline int gt_prepare_stop(void)
{
    PyObject **spare = gt_spare_stop();
    if (!*spare)
        *spare = PyObject_CallNoArgs(PyExc_StopIteration);
    return *spare ? 0 : -1;
}

/* __next__() and send(), by the function of am_send: for `await`, too, from Python 3.12 on.  The exception for the answer is
 * made first, because where bytes have been taken from a queue nothing may fail any more.  Where that fails the awaitable is
 * not driven. */
static inline PyObject *gt_drive_by_method(sendfunc drive, PyObject *object, PyObject *message)
{
    if (gt_prepare_stop() < 0)
        return NULL;
    PyObject *result = NULL, **spare = gt_spare_stop(), *stop = *spare;
    *spare = NULL; /* driving may run code that drives another awaitable */
    PySendResult sent = drive(object, message, &result);
    if (sent != PYGEN_RETURN) {
        Py_XSETREF(*spare, stop);
        return sent == PYGEN_NEXT ? result : NULL;
    }
    Py_XSETREF(((PyStopIterationObject *)stop)->value, result);
    PyErr_SetObject(PyExc_StopIteration, stop);
    Py_DECREF(stop);
    return NULL;
}

/* send() and __next__() of a type with am_send. */
static inline PyObject *gt_send(PyObject *self, PyObject *message)
{
    return gt_drive_by_method(Py_TYPE(self)->tp_as_async->am_send, self, message);
}

static inline PyObject *gt_next(PyObject *self) { return gt_send(self, Py_None); }

/* An exception that an awaitable may raise.  A StopIteration would say that it has returned: as in Python's coroutines a
 * RuntimeError stands for it.  Takes the caller's reference. */
static inline PyObject *gt_never_stop(PyObject *exception)
{
    if (!PyErr_GivenExceptionMatches(exception, PyExc_StopIteration))
        return exception;
    PyErr_SetString(PyExc_RuntimeError, "coroutine raised StopIteration");
    PyObject *error = gt_take_exception();
    PyException_SetCause(error, Py_NewRef(exception));
    PyException_SetContext(error, exception);
    return error;
}

/* Answer with what was kept for the next time that the awaitable is driven.  Takes the caller's reference. */
static inline PySendResult gt_give_kept(PyObject *kept, bool raises, PyObject **result)
{
    if (!raises) {
        *result = kept;
        return PYGEN_RETURN;
    }
    gt_restore_exception(kept);
    return PYGEN_ERROR;
}

/* Raise the exception that throw() was given, in one of its two forms, with its traceback.  Returns NULL. */
static inline PyObject *gt_raise_thrown(PyObject *const *arguments, Py_ssize_t count)
{
    if (count < 1 || count > 3) {
        PyErr_SetString(PyExc_TypeError, "throw() takes an exception, or a type, a value and a traceback");
        return NULL;
    }
    PyObject *type = arguments[0], *value = count > 1 ? arguments[1] : Py_None;
    PyObject *traceback = count > 2 ? arguments[2] : Py_None;
    if (traceback != Py_None && !PyTraceBack_Check(traceback)) {
        PyErr_SetString(PyExc_TypeError, "throw() takes a traceback as its third argument");
        return NULL;
    }
    if (PyExceptionInstance_Check(type)) {
        PyErr_SetObject((PyObject *)Py_TYPE(type), type);
    } else if (PyExceptionClass_Check(type)) {
        PyErr_SetObject(type, value == Py_None ? NULL : value);
    } else {
        PyErr_SetString(PyExc_TypeError, "throw() takes an exception");
        return NULL;
    }
    PyObject *exception = gt_take_exception();
    if (traceback != Py_None)
        PyException_SetTraceback(exception, traceback);
    gt_restore_exception(gt_never_stop(exception));
    return NULL;
}

/* __await__() and __iter__() */
static inline PyObject *gt_self(PyObject *self) { return Py_NewRef(self); }

#endif
