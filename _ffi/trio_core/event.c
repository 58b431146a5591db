/* event.c: an event.
 *
 * Stands for, in trio/_sync.py:
 *     Event.set
 *     Event.wait    in a task
 */
#include "wait.h"

static PyObject *abort_wait(tc_wait *self, PyObject *Py_UNUSED(raise_cancel))
{
    return tc_wait_leave_set(tc_get(tc_core.event.tasks, self->owner), self->task);
}

static const tc_wait_kind waiting = {abort_wait, NULL};

/* event_set(event): whether it is done. */
PyObject *tc_event_set(PyObject *Py_UNUSED(module), PyObject *self)
{
    if (!Py_IS_TYPE(self, tc_core.event_type))
        Py_RETURN_FALSE;
    int happened = tc_is_true(tc_get(tc_core.event.flag, self));
    if (happened != 0)
        return happened < 0 ? NULL : Py_NewRef(Py_True);
    PyObject *tasks = tc_get(tc_core.event.tasks, self);
    if (!PySet_Check(tasks))
        Py_RETURN_FALSE;
    tc_set(tc_core.event.flag, self, Py_True);
    if (PySet_GET_SIZE(tasks) == 0)
        Py_RETURN_TRUE;
    Py_INCREF(tasks);
    PyObject *iterator = PyObject_GetIter(tasks), *task;
    int result = iterator ? 0 : -1;
    while (result == 0 && (task = PyIter_Next(iterator))) {
        result = tc_wake(task, NULL);
        Py_DECREF(task);
    }
    Py_XDECREF(iterator);
    if (result == 0 && !PyErr_Occurred())
        PySet_Clear(tasks);
    Py_DECREF(tasks);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_True);
}

/* event_wait(event): what to await, or None for Trio to do it. */
PyObject *tc_event_wait(PyObject *Py_UNUSED(module), PyObject *self)
{
    if (!Py_IS_TYPE(self, tc_core.event_type))
        Py_RETURN_NONE;
    int happened = tc_is_true(tc_get(tc_core.event.flag, self));
    if (happened != 0)
        return happened < 0 ? NULL : tc_wait_checkpoint();
    PyObject *task = tc_current_task(), *tasks = tc_get(tc_core.event.tasks, self);
    if (!task || !PySet_Check(tasks))
        Py_RETURN_NONE;
    PyObject *wait = tc_wait_park(&waiting, self, task);
    if (wait && PySet_Add(tasks, task) < 0)
        Py_CLEAR(wait);
    return wait;
}
