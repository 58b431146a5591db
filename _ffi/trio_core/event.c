/* event.c: an event.
 *
 * Stands for, in trio/_sync.py:
 *     Event.wait    of one that has not happened: a task parks in it
 *     Event.set     which wakes these tasks
 *
 * An event that has happened is a checkpoint to wait for, and is Trio's.
 */
#include "wait.h"

static PyObject *abort_event(tc_wait *self, PyObject *Py_UNUSED(raise_cancel))
{
    return tc_wait_leave_set(tc_get(tc_core.event.tasks, self->owner), self->task);
}

static const tc_wait_kind waiting = {.abort = abort_event};

/* The tasks that wait for an event which has not happened, borrowed; NULL without an exception: Trio has to look at it. */
static PyObject *tasks_of(PyObject *event)
{
    if (!Py_IS_TYPE(event, tc_core.event_type) || tc_get(tc_core.event.flag, event) != Py_False ||
        !tc_intact(TC_events))
        return NULL;
    PyObject *tasks = tc_get(tc_core.event.tasks, event);
    return PySet_CheckExact(tasks) ? tasks : NULL;
}

/* event_wait(event): what to await, or None for Trio to do it. */
PyObject *tc_event_wait(PyObject *Py_UNUSED(module), PyObject *self)
{
    PyObject *tasks = tasks_of(self), *task = tasks ? tc_current_task() : NULL;
    if (!task)
        Py_RETURN_NONE;
    if (PySet_Add(tasks, task) < 0)
        return NULL;
    Py_INCREF(tasks);
    PyObject *wait = tc_wait_park(&waiting, self, task);
    if (!wait)
        tc_wait_withdraw(tasks, task);
    Py_DECREF(tasks);
    return wait;
}

static int wake_all(PyObject *tasks)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tasks); i++)
        if (tc_wake(PyList_GET_ITEM(tasks, i), NULL) < 0)
            return -1;
    return 0;
}

/* event_set(event): whether it is done. */
PyObject *tc_event_set(PyObject *Py_UNUSED(module), PyObject *self)
{
    PyObject *tasks = tasks_of(self);
    if (!tasks)
        Py_RETURN_FALSE;
    Py_INCREF(tasks);
    PyObject *woken = PySequence_List(tasks); /* in the order in which Trio goes through the set */
    if (woken)
        tc_set(tc_core.event.flag, self, Py_True);
    int result = woken ? wake_all(woken) : -1;
    if (result == 0)
        result = PySet_Clear(tasks);
    Py_XDECREF(woken);
    Py_DECREF(tasks);
    return result < 0 ? NULL : Py_NewRef(Py_True);
}
