/* fail_after.c: a scope with a time limit, which raises when it is over.
 *
 * Stands for, in trio/_timeouts.py:
 *     fail_after    of a number of seconds that is one, in a Trio with relative deadlines
 * and in Python's contextlib:
 *     _GeneratorContextManager: __init__, __enter__, __exit__     of that generator
 *
 * when its block ends without an exception and the scope is not cancelled.  Otherwise the manager is given the generator first,
 * as far as it would be by then, and contextlib's own methods go on with it: see gain_trio/_acceleration/_fail_after.py.
 *
 * While a tool watches, contextlib's own manager is made.  From Python 3.12 on a tool that has stopped watching does not change
 * that, because the code object keeps what it had for the tool.
 */
#include "scope.h"

static PyObject *function_of(PyObject *manager) { return tc_get(tc_core.manager.function, manager); }

/* The number of seconds; NULL without an exception: Trio's own code has to look at the arguments. */
static PyObject *seconds_of(PyObject *args, PyObject *kwds)
{
    Py_ssize_t names = PyDict_GET_SIZE(kwds);
    if (PyTuple_GET_SIZE(args) != 1 || names > 1)
        return NULL;
    if (names == 1 && !PyDict_GetItemWithError(kwds, tc_names.shield)) {
        PyErr_Clear();
        return NULL;
    }
    return PyTuple_GET_ITEM(args, 0);
}

/* fail_after(function, args, kwds): the context manager, or None for contextlib to make it. */
PyObject *tc_fail_after(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3 || arguments[0] != tc_core.fail_after_function || !PyTuple_CheckExact(arguments[1]) ||
        !PyDict_CheckExact(arguments[2]) || tc_core.scope.relative_deadline < 0 || !tc_intact(TC_timeouts) ||
        tc_is_watched(PyFunction_GET_CODE(arguments[0])))
        Py_RETURN_NONE;
    PyObject *seconds = seconds_of(arguments[1], arguments[2]);
    if (!seconds || !(tc_plain_number(seconds) >= 0))
        Py_RETURN_NONE;
    PyObject *manager = tc_new_object(tc_core.fail_after_type);
    if (!manager)
        return NULL;
    tc_set(tc_core.manager.function, manager, arguments[0]);
    tc_set(tc_core.manager.arguments, manager, arguments[1]);
    tc_set(tc_core.manager.keywords, manager, arguments[2]);
    tc_set(tc_core.manager.scope, manager, Py_None);
    return manager;
}

/* The arguments go when the block is left, for the same reason that contextlib drops them: not to keep them alive. */
static void note_left(PyObject *manager)
{
    tc_set(tc_core.manager.arguments, manager, Py_None);
    tc_set(tc_core.manager.keywords, manager, Py_None);
    tc_set(tc_core.manager.scope, manager, Py_None);
}

static int become_plain(PyObject *manager) { return tc_drop(PyObject_CallOneArg(tc_core.become_plain, manager)); }

/* Enter a new scope.  1; 0: contextlib has to do it; -1: exception set */
static int enter(PyObject *manager)
{
    PyObject *args = tc_get(tc_core.manager.arguments, manager), *kwds = tc_get(tc_core.manager.keywords, manager);
    if (function_of(manager) == Py_None || args == Py_None || tc_get(tc_core.manager.scope, manager) != Py_None ||
        !tc_intact(TC_timeouts))
        return 0;
    PyObject *shield = PyDict_GetItemWithError(kwds, tc_names.shield);
    PyObject *scope = PyErr_Occurred() ? NULL : tc_scope_new(PyTuple_GET_ITEM(args, 0), shield ? shield : Py_False);
    int opened = scope ? tc_scope_open(scope) : -1;
    if (opened > 0)
        tc_set(tc_core.manager.scope, manager, scope);
    else if (opened < 0)
        note_left(manager); /* as a generator is, that has raised */
    Py_XDECREF(scope);
    return opened;
}

static PyObject *manager_enter(PyObject *manager, PyObject *Py_UNUSED(ignored))
{
    int entered = enter(manager);
    if (entered > 0)
        return Py_NewRef(tc_get(tc_core.manager.scope, manager));
    return entered < 0 || become_plain(manager) < 0 ? NULL : PyObject_CallOneArg(tc_core.plain_enter, manager);
}

/* Leave the scope in which no exception was raised.  1; 0: contextlib has to do it; -1: exception set */
static int leave(PyObject *manager)
{
    PyObject *scope = Py_NewRef(tc_get(tc_core.manager.scope, manager));
    int closed = scope != Py_None && tc_intact(TC_timeouts) ? tc_scope_close(scope) : 0;
    if (closed != 0)
        note_left(manager);
    Py_DECREF(scope);
    return closed;
}

static PyObject *manager_exit(PyObject *manager, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3) {
        PyErr_Format(PyExc_TypeError, "__exit__() takes 3 arguments, not %zd", count);
        return NULL;
    }
    int left = arguments[0] == Py_None ? leave(manager) : 0;
    if (left > 0)
        Py_RETURN_FALSE;
    PyObject *const all[] = {manager, arguments[0], arguments[1], arguments[2]};
    return left < 0 || become_plain(manager) < 0 ? NULL : PyObject_Vectorcall(tc_core.plain_exit, all, 4, NULL);
}

/* One that is dropped in its block has a generator that is closed by that, and so leaves the scope. */
static PyObject *manager_del(PyObject *manager, PyObject *Py_UNUSED(ignored))
{
    bool is_entered = tc_get(tc_core.manager.scope, manager) != Py_None;
    return is_entered && become_plain(manager) < 0 ? NULL : Py_NewRef(Py_None);
}

int tc_fail_after_init(void)
{
    if (tc_core.fail_after_function != Py_None && !PyFunction_Check(tc_core.fail_after_function)) {
        PyErr_SetString(PyExc_TypeError, "fail_after() is made of no function of Python");
        return -1;
    }
    static PyMethodDef methods[] = {
        {"__enter__", manager_enter, METH_NOARGS, NULL},
        {"__exit__", (PyCFunction)manager_exit, METH_FASTCALL, NULL},
        {"__del__", manager_del, METH_NOARGS, NULL},
    };
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        PyObject *method = PyDescr_NewMethod(tc_core.fail_after_type, &methods[i]);
        int result =
            method ? PyObject_SetAttrString((PyObject *)tc_core.fail_after_type, methods[i].ml_name, method) : -1;
        Py_XDECREF(method);
        if (result < 0)
            return -1;
    }
    return 0;
}
