/* drive.c: what every awaitable of the fast path does in the same way, whatever it waits for. */
#include "fastpath.h"

PyObject *gt_drive_by_method(sendfunc drive_object, PyObject *object, PyObject *message)
{
    PyObject *result;
    switch (drive_object(object, message, &result)) {
    case PYGEN_NEXT:
        return result;
    case PYGEN_RETURN: {
        /* An exception instance would be raised itself and a tuple taken apart, so both are wrapped. */
        PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result);
        Py_DECREF(result);
        if (stop) {
            PyErr_SetObject(PyExc_StopIteration, stop);
            Py_DECREF(stop);
        }
        return NULL;
    }
    case PYGEN_ERROR:
        break;
    }
    return NULL;
}

PyObject *gt_raise_thrown(PyObject *args)
{
    PyObject *type, *value = Py_None, *traceback = Py_None;
    if (!PyArg_ParseTuple(args, "O|OO:throw", &type, &value, &traceback))
        return NULL;
    if (PyExceptionInstance_Check(type)) {
        PyErr_SetObject((PyObject *)Py_TYPE(type), type);
    } else if (PyExceptionClass_Check(type)) {
        PyErr_SetObject(type, value == Py_None ? NULL : value);
    } else {
        PyErr_SetString(PyExc_TypeError, "throw() takes an exception");
    }
    return NULL;
}

/* As the interpreter does for a coroutine; where warnings are errors, there is no caller that could catch one. */
void gt_warn_never_awaited(PyObject *awaitable, const char *call)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "coroutine '%s' was never awaited", call) < 0)
        PyErr_WriteUnraisable(awaitable);
    PyErr_Restore(type, value, traceback);
}
