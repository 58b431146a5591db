/* drive.c: what every awaitable of this module does in the same way, whatever it waits for.
 *
 * Python drives one in three ways (am_send, __next__, send), depending on its version and on whether it is being traced.
 */
#include "core.h"

PyObject *tc_drive_by_method(sendfunc drive, PyObject *object, PyObject *message)
{
    PyObject *result = NULL;
    PySendResult sent = drive(object, message, &result);
    if (sent == PYGEN_NEXT)
        return result;
    if (sent == PYGEN_RETURN) {
        /* An exception instance would be raised itself and a tuple taken apart, so both are wrapped. */
        PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result);
        Py_DECREF(result);
        if (stop) {
            PyErr_SetObject(PyExc_StopIteration, stop);
            Py_DECREF(stop);
        }
    }
    return NULL;
}

PyObject *tc_raise_thrown(PyObject *const *arguments, Py_ssize_t count)
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

PyObject *tc_throw_into(PyObject *awaitable, PyObject *const *arguments, Py_ssize_t count)
{
    PyObject *method = PyObject_GetAttr(awaitable, tc_names.throw);
    if (!method)
        return NULL;
    PyObject *result = PyObject_Vectorcall(method, arguments, (size_t)count, NULL);
    Py_DECREF(method);
    return result;
}

PyObject *tc_self(PyObject *self) { return Py_NewRef(self); }
