/* exceptions.h: the exception that is set in this thread, taken as one object and set again; and one warning. */
#ifndef GAIN_TRIO_EXCEPTIONS_H
#define GAIN_TRIO_EXCEPTIONS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* The exception that is set, with its traceback, as a new reference; none is set afterwards. */
static inline PyObject *gt_take_exception(void)
{
#if PY_VERSION_HEX >= 0x030c0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback) {
        PyException_SetTraceback(value, traceback);
        Py_DECREF(traceback);
    }
    Py_XDECREF(type);
    return value;
#endif
}

/* Takes the caller's reference. */
static inline void gt_restore_exception(PyObject *exception)
{
#if PY_VERSION_HEX >= 0x030c0000
    PyErr_SetRaisedException(exception);
#else
    PyErr_Restore(Py_NewRef(Py_TYPE(exception)), exception, PyException_GetTraceback(exception));
#endif
}

/* Warn about an object that is finalized without having been closed, as Python does about a socket.  An exception that is set
 * stays set. */
static inline void gt_warn_unclosed(PyObject *object)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (PyErr_ResourceWarning(object, 1, "unclosed %R", object) < 0) {
        if (PyErr_ExceptionMatches(PyExc_Warning))
            PyErr_WriteUnraisable(object);
        else
            PyErr_Clear();
    }
    PyErr_Restore(type, value, traceback);
}

#endif
