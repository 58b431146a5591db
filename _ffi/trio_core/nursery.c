/* nursery.c: opening a nursery, and leaving it.
 *
 * Stands for, in trio/_core/_run.py:
 *     NurseryManager.__aenter__    with Nursery.__init__
 *     NurseryManager.__aexit__     with Nursery._nested_child_finished and Nursery._check_nursery_closed, when the block has
 *                                  not raised: up to CancelScope._close, which is Trio's unless nothing is cancelled
 *
 * Exceptions of children, and their group, are made by Trio's own code or by the seam's transcript of it.
 */
#include "scope.h"
#include "wait.h"

/* --- enter --- */

/* A nursery as Nursery.__init__ makes it, but for its place in its parent task.  Everything else is made before the object is,
 * because the finalizer of a nursery without its attributes complains. */
static PyObject *make_nursery(PyObject *task, PyObject *scope, PyObject *strict)
{
    PyObject *children = PySet_New(NULL), *exceptions = PyList_New(0), *zero = PyLong_FromLong(0);
    const struct {
        PyObject *name, *value;
    } attributes[] = {
        {tc_names._parent_task, task},
        {tc_names._strict_exception_groups, strict},
        {tc_names._cancel_status, tc_get(tc_core.task.cancel_status, task)},
        {tc_names.cancel_scope, scope},
        {tc_names._children, children},
        {tc_names._pending_excs, exceptions},
        {tc_names._nested_child_running, Py_True},
        {tc_names._parent_waiting_in_aexit, Py_False},
        {tc_names._pending_starts, zero},
        {tc_names._closed, Py_False},
    };
    PyObject *nursery = children && exceptions && zero ? tc_new_object(tc_core.nursery_type) : NULL;
    for (size_t i = 0; nursery && i < sizeof attributes / sizeof attributes[0]; i++)
        if (PyObject_SetAttr(nursery, attributes[i].name, attributes[i].value) < 0)
            Py_CLEAR(nursery);
    Py_XDECREF(children);
    Py_XDECREF(exceptions);
    Py_XDECREF(zero);
    return nursery;
}

/* A nursery in the scope, which the task has entered; NULL: exception set. */
static PyObject *open_in(PyObject *manager, PyObject *task, PyObject *scope, PyObject *strict)
{
    PyObject *nurseries = tc_get(tc_core.task.child_nurseries, task);
    PyObject *nursery = make_nursery(task, scope, strict);
    if (nursery && (PyObject_SetAttr(manager, tc_names._scope, scope) < 0 ||
                    PyObject_SetAttr(manager, tc_names._nursery, nursery) < 0 || PyList_Append(nurseries, nursery) < 0))
        Py_CLEAR(nursery);
    if (!nursery) {
        PyObject *exception = gt_take_exception();
        if (tc_scope_close(scope) < 0)
            PyErr_Clear(); /* there is an exception already */
        gt_restore_exception(exception);
    }
    return nursery;
}

/* nursery_enter(manager): the nursery, or None for Trio to do it. */
PyObject *tc_nursery_enter(PyObject *Py_UNUSED(module), PyObject *manager)
{
    PyObject *task = tc_current_task();
    if (!task || !Py_IS_TYPE(manager, tc_core.nursery_manager_type) || !tc_intact(TC_nurseries) ||
        !PyList_CheckExact(tc_get(tc_core.task.child_nurseries, task)))
        Py_RETURN_NONE;
    PyObject *strict = PyObject_GetAttr(manager, tc_names.strict_exception_groups);
    PyObject *scope = strict ? tc_scope_new(tc_core.infinity, Py_False) : NULL;
    int opened = scope ? tc_scope_open(scope) : -1;
    PyObject *nursery = opened > 0 ? open_in(manager, task, scope, strict) : NULL;
    Py_XDECREF(strict);
    Py_XDECREF(scope);
    return nursery || opened != 0 ? nursery : Py_NewRef(Py_None);
}

/* --- exit --- */

static PyObject *nursery_of(PyObject *manager)
{
    PyObject *nursery = PyObject_GetAttr(manager, tc_names._nursery);
    if (nursery && !Py_IS_TYPE(nursery, tc_core.nursery_type)) {
        PyErr_SetString(PyExc_TypeError, "what a nursery's manager has is no nursery");
        Py_CLEAR(nursery);
    }
    return nursery;
}

static PyObject *abort_exit(tc_wait *self, PyObject *raise_cancel)
{
    PyObject *nursery = nursery_of(self->owner);
    PyObject *result =
        nursery ? PyObject_CallFunctionObjArgs(tc_core.nursery_aborted, nursery, raise_cancel, NULL) : NULL;
    Py_XDECREF(nursery);
    return result;
}

/* task._child_nurseries.pop(), which must be this one. */
static int leave_parent(PyObject *nursery, PyObject *task)
{
    PyObject *nurseries = Py_NewRef(tc_get(tc_core.task.child_nurseries, task));
    Py_ssize_t count = PyList_CheckExact(nurseries) ? PyList_GET_SIZE(nurseries) : 0;
    PyObject *last = count > 0 ? Py_NewRef(PyList_GET_ITEM(nurseries, count - 1)) : NULL;
    int result = last ? PyList_SetSlice(nurseries, count - 1, count, NULL) : -1;
    if (!last) {
        PyErr_SetString(PyExc_IndexError, "pop from empty list");
    } else if (result == 0 && last != nursery) {
        PyErr_SetString(PyExc_AssertionError, "Nursery misnesting detected!");
        result = -1;
    }
    Py_XDECREF(last);
    Py_DECREF(nurseries);
    return result;
}

/* True when all is done, with the scope closed; None when the scope is to be closed; or the exception that it is to be
 * closed with. */
static PyObject *finish_nursery(PyObject *manager, PyObject *nursery, PyObject *task)
{
    if (leave_parent(nursery, task) < 0)
        return NULL;
    PyObject *exceptions = PyObject_GetAttr(nursery, tc_names._pending_excs);
    int failed = exceptions ? PyObject_IsTrue(exceptions) : -1;
    Py_XDECREF(exceptions);
    if (failed != 0)
        return failed < 0 ? NULL : PyObject_CallOneArg(tc_core.nursery_error, nursery);
    PyObject *scope = PyObject_GetAttr(manager, tc_names._scope);
    int closed = !scope ? -1 : tc_intact(TC_nurseries) ? tc_scope_close(scope) : 0;
    Py_XDECREF(scope);
    return closed < 0 ? NULL : Py_NewRef(closed ? Py_True : Py_None);
}

/* Behind the end of the children, or behind the schedule point. */
static PyObject *finish_exit(tc_wait *self, PyObject *result)
{
    PyObject *manager = self->owner, *nursery, *task;
    if (!result)
        return NULL;
    Py_DECREF(result);
    nursery = nursery_of(manager);
    task = nursery ? PyObject_GetAttr(nursery, tc_names._parent_task) : NULL;
    result = NULL;
    if (task && Py_IS_TYPE(task, tc_core.task_type))
        result = finish_nursery(manager, nursery, task);
    else if (task)
        PyErr_SetString(PyExc_TypeError, "a nursery's parent is no task");
    Py_XDECREF(task);
    Py_XDECREF(nursery);
    return result;
}

/* The schedule point of a nursery without children: what it raises is one of the nursery's exceptions. */
static PyObject *finish_point(tc_wait *self, PyObject *result)
{
    if (!result) {
        PyObject *exception = gt_take_exception(), *nursery = nursery_of(self->owner);
        if (nursery)
            result = PyObject_CallFunctionObjArgs(tc_core.nursery_add, nursery, exception, NULL);
        Py_XDECREF(nursery);
        Py_DECREF(exception);
    }
    return finish_exit(self, result);
}

static const tc_wait_kind leaving = {.abort = abort_exit, .finish = finish_exit}, passing = {.finish = finish_point};

static bool has(PyObject *nursery, PyObject *name, PyObject *expected)
{
    PyObject *value = PyObject_GetAttr(nursery, name);
    Py_XDECREF(value);
    if (!value)
        PyErr_Clear();
    return value == expected;
}

static bool is_open_in(PyObject *nursery, PyObject *task)
{
    return Py_IS_TYPE(nursery, tc_core.nursery_type) &&
           tc_is_own(nursery, tc_names._nested_child_finished, tc_core.nested_method) &&
           tc_is_own(nursery, tc_names._check_nursery_closed, tc_core.close_method) &&
           has(nursery, tc_names._parent_task, task) && has(nursery, tc_names._closed, Py_False) &&
           has(nursery, tc_names._nested_child_running, Py_True) &&
           has(nursery, tc_names._parent_waiting_in_aexit, Py_False);
}

/* Has the nursery children, or will it have some?  -1: Trio has to look at it; there is no exception. */
static int is_busy(PyObject *nursery)
{
    PyObject *children = PyObject_GetAttr(nursery, tc_names._children);
    PyObject *starts = children ? PyObject_GetAttr(nursery, tc_names._pending_starts) : NULL;
    int busy = -1;
    if (starts && PySet_CheckExact(children) && PyLong_CheckExact(starts))
        busy = PySet_GET_SIZE(children) > 0 || PyObject_IsTrue(starts);
    PyErr_Clear();
    Py_XDECREF(children);
    Py_XDECREF(starts);
    return busy;
}

static PyObject *leave(PyObject *manager, PyObject *nursery, PyObject *task, bool busy)
{
    PyObject *wait = busy ? tc_wait_park(&leaving, manager, task) : tc_wait_pass(&passing, manager, Py_None);
    if (wait && (PyObject_SetAttr(nursery, tc_names._nested_child_running, Py_False) < 0 ||
                 PyObject_SetAttr(nursery, busy ? tc_names._parent_waiting_in_aexit : tc_names._closed, Py_True) < 0))
        Py_CLEAR(wait);
    return wait;
}

/* nursery_exit(manager, exception): what to await, or None for Trio to do it.  What it returns is what finish_nursery()
 * does. */
PyObject *tc_nursery_exit(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    PyObject *task = tc_current_task();
    if (!task || count != 2 || arguments[1] != Py_None || !Py_IS_TYPE(arguments[0], tc_core.nursery_manager_type) ||
        !tc_intact(TC_nurseries))
        Py_RETURN_NONE;
    PyObject *nursery = PyObject_GetAttr(arguments[0], tc_names._nursery), *wait = NULL;
    PyErr_Clear();
    int busy = nursery && is_open_in(nursery, task) ? is_busy(nursery) : -1;
    if (busy >= 0)
        wait = leave(arguments[0], nursery, task, busy);
    Py_XDECREF(nursery);
    return wait || busy >= 0 ? wait : Py_NewRef(Py_None);
}
