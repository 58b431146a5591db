/* awaitable.h: what every awaitable of the compiled modules does in the same way, whatever it waits for.
 *
 * Python drives one in three ways (am_send, __next__, send), depending on its version and on whether it is being traced.
 */
#ifndef GAIN_TRIO_AWAITABLE_H
#define GAIN_TRIO_AWAITABLE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* __next__() and send(), by the function of am_send. */
static inline PyObject *gt_drive_by_method(sendfunc drive, PyObject *object, PyObject *message)
{
    PyObject *result = NULL;
    PySendResult sent = drive(object, message, &result);
    if (sent == PYGEN_RETURN) {
        /* An exception instance would be raised itself and a tuple taken apart, so both are wrapped. */
        PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result);
        Py_CLEAR(result);
        if (stop) {
            PyErr_SetObject(PyExc_StopIteration, stop);
            Py_DECREF(stop);
        }
    }
    return sent == PYGEN_NEXT ? result : NULL;
}

/* Raise the exception that throw() was given, in one of its two forms.  Returns NULL. */
static inline PyObject *gt_raise_thrown(PyObject *const *arguments, Py_ssize_t count)
{
    if (count < 1 || count > 3) {
        PyErr_SetString(PyExc_TypeError, "throw() takes an exception, or a type, a value and a traceback");
        return NULL;
    }
    PyObject *type = arguments[0], *value = count > 1 ? arguments[1] : Py_None;
    if (PyExceptionInstance_Check(type))
        PyErr_SetObject((PyObject *)Py_TYPE(type), type);
    else if (PyExceptionClass_Check(type))
        PyErr_SetObject(type, value == Py_None ? NULL : value);
    else
        PyErr_SetString(PyExc_TypeError, "throw() takes an exception");
    return NULL;
}

/* __await__() and __iter__() */
static inline PyObject *gt_self(PyObject *self) { return Py_NewRef(self); }

#endif
