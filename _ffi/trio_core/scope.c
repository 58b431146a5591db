/* scope.c: entering and leaving a cancel scope.
 *
 * Stands for, in trio/_core/_run.py:
 *     CancelScope.__init__      as attrs generates it, with __attrs_post_init__
 *     CancelScope.__enter__     with CancelStatus(), Task._activate_cancel_status and Deadlines.add
 *     CancelScope.__exit__      with CancelScope._close, CancelStatus.close and Deadlines.remove
 *
 * when nothing is cancelled and the scopes are properly nested.  A scope that is cancelled, or entered in a cancelled one, or
 * whose deadline has passed, or one with a deadline in guest mode (whose host has to wake for it), or any in a run with
 * another clock than the system's, is Trio's to do.
 */
#include "scope.h"

#include <math.h>

/* --- __init__ --- */

/* The value of a plain float or int; NAN for anything else, which Trio's own code looks at. */
double tc_plain_number(PyObject *number)
{
    if (PyFloat_CheckExact(number))
        return PyFloat_AS_DOUBLE(number);
    if (!PyLong_CheckExact(number))
        return Py_NAN;
    double value = PyLong_AsDouble(number);
    if (value == -1.0 && PyErr_Occurred()) { /* too large for one */
        PyErr_Clear();
        return Py_NAN;
    }
    return value;
}

/* Give a new object the attributes of a scope that no task has entered. */
static void fill_in(PyObject *self, PyObject *relative, PyObject *deadline, PyObject *shield)
{
    if (tc_core.scope.relative_deadline >= 0)
        tc_set(tc_core.scope.relative_deadline, self, relative);
    tc_set(tc_core.scope.cancel_status, self, Py_None);
    tc_set(tc_core.scope.has_been_entered, self, Py_False);
    tc_set(tc_core.scope.registered_deadline, self, tc_core.infinity);
    tc_set(tc_core.scope.cancel_called, self, Py_False);
    tc_set(tc_core.scope.cancelled_caught, self, Py_False);
    if (tc_core.scope.cancel_reason >= 0)
        tc_set(tc_core.scope.cancel_reason, self, Py_None);
    tc_set(tc_core.scope.deadline, self, deadline);
    tc_set(tc_core.scope.shield, self, shield);
}

PyObject *tc_scope_new(PyObject *relative, PyObject *shield)
{
    PyObject *scope = tc_new_object(tc_core.scope_type);
    if (scope)
        fill_in(scope, relative, tc_core.infinity, shield);
    return scope;
}

/* scope_init(scope, [relative_deadline,] deadline, shield): whether it is done. */
PyObject *tc_scope_init(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    bool has_relative = tc_core.scope.relative_deadline >= 0;
    if (count != 3 + has_relative || !Py_IS_TYPE(arguments[0], tc_core.scope_type) || !tc_intact(TC_scopes))
        Py_RETURN_FALSE;
    PyObject *self = arguments[0], *relative = has_relative ? arguments[1] : tc_core.infinity;
    PyObject *deadline = arguments[1 + has_relative], *shield = arguments[2 + has_relative];
    if (has_relative) { /* before there was one, Trio took any object for a deadline */
        double timeout = tc_plain_number(relative), end = tc_plain_number(deadline);
        if (!(timeout >= 0) || isnan(end) || (timeout < Py_HUGE_VAL && end < Py_HUGE_VAL))
            Py_RETURN_FALSE;
    }
    fill_in(self, relative, deadline, shield);
    Py_RETURN_TRUE;
}

/* --- __enter__ --- */

/* When the scope ends: a new reference, or None for never.  NULL: exception set, or Trio's own code is to look at it. */
static PyObject *find_deadline(PyObject *self, PyObject *runner)
{
    PyObject *deadline = tc_get(tc_core.scope.deadline, self);
    PyObject *relative =
        tc_core.scope.relative_deadline >= 0 ? tc_get(tc_core.scope.relative_deadline, self) : tc_core.infinity;
    if (!Py_IS_TYPE(tc_get(tc_core.runner.clock, runner), tc_core.system_clock_type))
        return NULL; /* another clock notices how often it is looked at */
    if (deadline == tc_core.infinity && relative == tc_core.infinity)
        return Py_NewRef(Py_None);
    double absolute = tc_plain_number(deadline), timeout = tc_plain_number(relative);
    if (!(timeout > 0) || isnan(absolute) || (timeout < Py_HUGE_VAL && absolute < Py_HUGE_VAL) ||
        tc_get(tc_core.runner.is_guest, runner) != Py_False)
        return NULL;
    double now = tc_now(runner);
    if (now == -1.0 && PyErr_Occurred())
        return NULL;
    if (timeout < Py_HUGE_VAL)
        return now + timeout > now && now + timeout < Py_HUGE_VAL ? PyFloat_FromDouble(now + timeout) : NULL;
    if (!(absolute > now))
        return NULL;
    return Py_NewRef(absolute < Py_HUGE_VAL ? deadline : Py_None);
}

/* Put (deadline, id(scope), scope) on the heap.  Until the scope has the deadline as its registered one, it is stale. */
static int push_deadline(PyObject *runner, PyObject *scope, PyObject *deadline)
{
    PyObject *identity = PyLong_FromVoidPtr(scope);
    PyObject *entry = identity ? PyTuple_Pack(3, deadline, identity, scope) : NULL;
    Py_XDECREF(identity);
    if (!entry)
        return -1;
    PyObject *heap = Py_NewRef(tc_get(tc_core.deadlines.heap, tc_get(tc_core.runner.deadlines, runner)));
    PyObject *result = PyObject_CallFunctionObjArgs(tc_core.heappush, heap, entry, NULL);
    Py_DECREF(heap);
    Py_DECREF(entry);
    return tc_drop(result);
}

/* CancelStatus objects that nothing refers to any more, with their two empty sets: making these is half of what a scope
 * costs.  They refer to no scope, no task and no run. */
#define SPARES 16
static PyObject *spares[SPARES];
static int spare_count;

static bool is_spare_set(PyObject *set)
{
    return PySet_CheckExact(set) && Py_REFCNT(set) == 1 && PySet_GET_SIZE(set) == 0 &&
           ((PySetObject *)set)->mask == PySet_MINSIZE - 1;
}

/* Takes the reference to a status that a task has left. */
static void release_status(PyObject *status)
{
    Py_ssize_t weak = tc_core.status_type->tp_weaklistoffset;
    PyObject *children = tc_get(tc_core.status.children, status), *tasks = tc_get(tc_core.status.tasks, status);
    if (spare_count == SPARES || Py_REFCNT(status) != 1 || (weak && *(PyObject **)((char *)status + weak)) ||
        !is_spare_set(children) || !is_spare_set(tasks) || PySet_Clear(children) < 0 || PySet_Clear(tasks) < 0) {
        Py_DECREF(status);
        return;
    }
    PyObject *scope = Py_NewRef(tc_get(tc_core.status.scope, status));
    tc_set(tc_core.status.scope, status, Py_None);
    tc_set(tc_core.status.parent, status, Py_None);
    spares[spare_count++] = status;
    Py_DECREF(scope); /* last, because it may run any code */
}

static PyObject *take_spare(PyObject *scope, PyObject *parent, PyObject *task)
{
    PyObject *status = spares[--spare_count];
    spares[spare_count] = NULL;
    if (PySet_Add(tc_get(tc_core.status.tasks, status), task) < 0) {
        Py_DECREF(status);
        return NULL;
    }
    tc_set(tc_core.status.scope, status, scope);
    tc_set(tc_core.status.parent, status, parent);
    tc_set(tc_core.status.effectively_cancelled, status, Py_False);
    tc_set(tc_core.status.abandoned, status, Py_False);
    return status;
}

/* A CancelStatus with one task, which nothing refers to yet. */
static PyObject *make_status(PyObject *scope, PyObject *parent, PyObject *task)
{
    if (spare_count > 0)
        return take_spare(scope, parent, task);
    PyObject *status = tc_core.status_type->tp_alloc(tc_core.status_type, 0);
    PyObject *children = PySet_New(NULL), *tasks = PySet_New(NULL);
    if (!status || !children || !tasks || PySet_Add(tasks, task) < 0) {
        Py_XDECREF(status);
        Py_XDECREF(children);
        Py_XDECREF(tasks);
        return NULL;
    }
    tc_set(tc_core.status.scope, status, scope);
    tc_set(tc_core.status.effectively_cancelled, status, Py_False);
    tc_set(tc_core.status.parent, status, parent);
    tc_give(tc_core.status.children, status, children);
    tc_give(tc_core.status.tasks, status, tasks);
    tc_set(tc_core.status.abandoned, status, Py_False);
    return status;
}

/* Take an item out of a set.  What is taken out leaves a mark, so a set that items go in and out of all the time is laid out anew
 * again and again; one that is empty is cheaper to clear.  0 or -1 */
static int take_out(PyObject *set, PyObject *item)
{
    if (PySet_Discard(set, item) < 0)
        return -1;
    return PySet_GET_SIZE(set) == 0 && ((PySetObject *)set)->fill > 2 ? PySet_Clear(set) : 0;
}

/* Make `to`, which has the task already, the task's status in the place of `from`. */
static int move_task(PyObject *task, PyObject *from, PyObject *to)
{
    if (take_out(tc_get(tc_core.status.tasks, from), task) < 0)
        return -1;
    tc_set(tc_core.task.cancel_status, task, to);
    return 0;
}

/* The sets of a status that is not cancelled. */
static bool is_usual(PyObject *status)
{
    return Py_IS_TYPE(status, tc_core.status_type) &&
           tc_get(tc_core.status.effectively_cancelled, status) == Py_False &&
           tc_get(tc_core.status.abandoned, status) == Py_False &&
           PyAnySet_CheckExact(tc_get(tc_core.status.children, status)) &&
           PyAnySet_CheckExact(tc_get(tc_core.status.tasks, status));
}

static int enter(PyObject *self, PyObject *task, PyObject *runner, PyObject *parent, PyObject *deadline)
{
    bool timed = deadline != Py_None;
    PyObject *status = make_status(self, parent, task);
    if (!status)
        return -1;
    if ((timed && push_deadline(runner, self, deadline) < 0) ||
        PySet_Add(tc_get(tc_core.status.children, parent), status) < 0 || move_task(task, parent, status) < 0) {
        Py_DECREF(status);
        return -1;
    }
    tc_give(tc_core.scope.cancel_status, self, status);
    tc_set(tc_core.scope.has_been_entered, self, Py_True);
    if (!timed)
        return 0;
    tc_set(tc_core.scope.deadline, self, deadline);
    tc_set(tc_core.scope.registered_deadline, self, deadline);
    if (tc_core.scope.relative_deadline >= 0)
        tc_set(tc_core.scope.relative_deadline, self, tc_core.infinity);
    return tc_add(tc_core.deadlines.active, tc_get(tc_core.runner.deadlines, runner), 1);
}

int tc_scope_open(PyObject *self)
{
    PyObject *task = tc_current_task();
    if (!task || !Py_IS_TYPE(self, tc_core.scope_type) || tc_get(tc_core.scope.has_been_entered, self) != Py_False ||
        tc_get(tc_core.scope.cancel_called, self) != Py_False)
        return 0;
    PyObject *runner = tc_get(tc_core.task.runner, task), *parent = tc_get(tc_core.task.cancel_status, task);
    if (!is_usual(parent))
        return 0;
    Py_INCREF(parent); /* asking the clock may run Python code */
    Py_INCREF(task);
    PyObject *deadline = find_deadline(self, runner);
    int result = 0;
    if (!deadline)
        result = PyErr_Occurred() ? -1 : 0;
    else if (is_usual(parent) && tc_get(tc_core.task.cancel_status, task) == parent &&
             tc_get(tc_core.scope.has_been_entered, self) == Py_False)
        result = enter(self, task, runner, parent, deadline) < 0 ? -1 : 1;
    Py_XDECREF(deadline);
    Py_DECREF(task);
    Py_DECREF(parent);
    return result;
}

/* scope_enter(scope): whether it is done. */
PyObject *tc_scope_enter(PyObject *Py_UNUSED(module), PyObject *self)
{
    int result = tc_intact(TC_scopes) ? tc_scope_open(self) : 0;
    return result < 0 ? NULL : PyBool_FromLong(result);
}

/* --- __exit__ --- */

static int leave(PyObject *self, PyObject *task, PyObject *status, PyObject *parent)
{
    PyObject *registered = tc_get(tc_core.scope.registered_deadline, self);
    if (registered != tc_core.infinity) {
        PyObject *runner = tc_get(tc_core.task.runner, task);
        if (tc_add(tc_core.deadlines.active, tc_get(tc_core.runner.deadlines, runner), -1) < 0)
            return -1;
        tc_set(tc_core.scope.registered_deadline, self, tc_core.infinity);
    }
    if (PySet_Add(tc_get(tc_core.status.tasks, parent), task) < 0 || move_task(task, status, parent) < 0 ||
        take_out(tc_get(tc_core.status.children, parent), status) < 0)
        return -1;
    tc_set(tc_core.status.parent, status, Py_None);
    tc_set(tc_core.scope.cancel_status, self, Py_None);
    return 0;
}

int tc_scope_close(PyObject *self)
{
    PyObject *task = tc_current_task();
    if (!task || !Py_IS_TYPE(self, tc_core.scope_type))
        return 0;
    PyObject *status = tc_get(tc_core.scope.cancel_status, self);
    if (!is_usual(status) || tc_get(tc_core.task.cancel_status, task) != status ||
        tc_get(tc_core.scope.cancel_called, self) != Py_False ||
        PySet_GET_SIZE(tc_get(tc_core.status.children, status)) != 0 ||
        PySet_GET_SIZE(tc_get(tc_core.status.tasks, status)) != 1 ||
        (tc_get(tc_core.scope.registered_deadline, self) != tc_core.infinity &&
         tc_get(tc_core.runner.is_guest, tc_get(tc_core.task.runner, task)) != Py_False))
        return 0;
    PyObject *parent = tc_get(tc_core.status.parent, status);
    if (!Py_IS_TYPE(parent, tc_core.status_type) || !PyAnySet_CheckExact(tc_get(tc_core.status.children, parent)) ||
        !PyAnySet_CheckExact(tc_get(tc_core.status.tasks, parent)))
        return 0;
    Py_INCREF(status);
    Py_INCREF(parent);
    int result = leave(self, task, status, parent);
    Py_DECREF(parent);
    release_status(status);
    return result < 0 ? -1 : 1;
}

/* scope_exit(scope, exception): what __exit__ returns, or None for Trio to do it. */
PyObject *tc_scope_exit(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    int result = count == 2 && tc_intact(TC_scopes) ? tc_scope_close(arguments[0]) : 0;
    if (result == 0)
        Py_RETURN_NONE;
    return result < 0 ? NULL : PyBool_FromLong(arguments[1] == Py_None);
}
