/* io_manager.c: waiting for descriptors with gain_trio's I/O manager.
 *
 * Stands for no code of Trio's, but for methods of UringIOManager, outside guest mode:
 *     get_events(), process_events()    the proactor's wait() and process(), and complete()
 *     poll()                            the proactor's poll(), with the manager's own table
 *
 * The proactor is the other compiled module's.  To look its methods up takes longer than to find that nothing has happened, so
 * they are remembered with its type.
 */
#include "io_manager.h"

#include <poll.h>

static struct {
    PyTypeObject *type; /* owned */
    PyCFunction wait, process, poll;
} known;

/* Does this module know the methods of this object? */
static bool is_known(PyObject *proactor)
{
    PyTypeObject *type = Py_TYPE(proactor);
    if (type == known.type)
        return true;
    PyCFunction wait = tc_function_of(type, tc_names.wait, METH_O);
    PyCFunction process = tc_function_of(type, tc_names.process, METH_NOARGS);
    PyCFunction poll = tc_function_of(type, tc_names.poll, METH_FASTCALL);
    if (!wait || !process || !poll || PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE)) /* a class of Python may change */
        return false;
    Py_INCREF(type);
    Py_XSETREF(known.type, type);
    known.wait = wait;
    known.process = process;
    known.poll = poll;
    return true;
}

bool tc_ring_is_manager(PyObject *manager) { return tc_core.manager_type && Py_IS_TYPE(manager, tc_core.manager_type); }

/* --- a tick --- */

static PyObject *call_wait(PyObject *proactor, PyObject *timeout)
{
    return is_known(proactor) ? known.wait(proactor, timeout)
                              : PyObject_CallMethodOneArg(proactor, tc_names.wait, timeout);
}

static PyObject *call_process(PyObject *proactor)
{
    return is_known(proactor) ? known.process(proactor, NULL) : PyObject_CallMethodNoArgs(proactor, tc_names.process);
}

int tc_ring_tick(PyObject *manager, PyObject *timeout)
{
    PyObject *proactor = PyObject_GetAttr(manager, tc_names.proactor);
    PyObject *news = proactor ? call_wait(proactor, timeout) : NULL;
    PyObject *completions = news ? call_process(proactor) : NULL;
    int result = completions ? 0 : news ? -1 : 1;
    if (completions && completions != Py_None)
        result = tc_drop(PyObject_CallMethodOneArg(manager, tc_names.complete, completions));
    Py_XDECREF(completions);
    Py_XDECREF(news);
    Py_XDECREF(proactor);
    return result;
}

/* --- a task that waits --- */

PyObject *tc_ring_wait(PyObject *manager, int descriptor, bool writes, bool is_socket)
{
    PyObject *table = PyObject_GetAttr(manager, writes ? tc_names.writers : tc_names.readers);
    PyObject *proactor = table ? PyObject_GetAttr(manager, tc_names.proactor) : NULL;
    PyObject *number = proactor ? PyLong_FromLong(descriptor) : NULL;
    PyObject *events = number ? PyLong_FromLong(writes ? POLLOUT : POLLIN) : NULL, *wait = NULL;
    if (events) {
        PyObject *arguments[] = {proactor, table, number, events, is_socket ? Py_True : Py_False};
        wait = is_known(proactor) ? ((_PyCFunctionFast)(void (*)(void))known.poll)(proactor, arguments + 1, 4)
                                  : PyObject_VectorcallMethod(tc_names.poll, arguments, 5, NULL);
    }
    Py_XDECREF(events);
    Py_XDECREF(number);
    Py_XDECREF(proactor);
    Py_XDECREF(table);
    return wait;
}
