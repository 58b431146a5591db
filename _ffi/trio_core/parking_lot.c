/* parking_lot.c: a queue of parked tasks.
 *
 * Stands for, in trio/_core/_parking_lot.py:
 *     ParkingLot.park      in a lot that is not broken
 *     ParkingLot.unpark    of a whole number of tasks, or of all
 */
#include "wait.h"
#include "parking_lot.h"

/* repark() may have moved the task to another lot since. */
static PyObject *abort_park(tc_wait *self, PyObject *Py_UNUSED(raise_cancel))
{
    PyObject *lot = tc_get(tc_core.task.custom_sleep_data, self->task);
    if (!Py_IS_TYPE(lot, tc_core.lot_type)) {
        PyErr_SetString(PyExc_TypeError, "a parked task has lost its parking lot");
        return NULL;
    }
    return tc_wait_leave_dict(tc_get(tc_core.lot.parked, lot), self->task);
}

static const tc_wait_kind parking = {.abort = abort_park};

PyObject *tc_lot_abort(tc_wait *self, PyObject *raise_cancel) { return abort_park(self, raise_cancel); }

/* The queue of a lot that is not broken, borrowed; or NULL without an exception. */
static PyObject *queue_of(PyObject *lot)
{
    if (!Py_IS_TYPE(lot, tc_core.lot_type))
        return NULL;
    PyObject *queue = tc_get(tc_core.lot.parked, lot);
    PyObject *breakers = tc_core.lot.broken_by >= 0 ? tc_get(tc_core.lot.broken_by, lot) : NULL;
    bool whole = !breakers || (PyList_CheckExact(breakers) && PyList_GET_SIZE(breakers) == 0);
    return whole && PyODict_CheckExact(queue) ? queue : NULL;
}

Py_ssize_t tc_lot_length(PyObject *lot)
{
    PyObject *queue = Py_IS_TYPE(lot, tc_core.lot_type) ? tc_get(tc_core.lot.parked, lot) : NULL;
    return queue && PyODict_CheckExact(queue) ? PyODict_SIZE(queue) : -1;
}

PyObject *tc_lot_park(const tc_wait_kind *kind, PyObject *owner, PyObject *lot, PyObject *task)
{
    PyObject *queue = queue_of(lot);
    if (!queue || PyObject_SetItem(queue, task, Py_None) < 0)
        return NULL;
    tc_set(tc_core.task.custom_sleep_data, task, lot);
    Py_INCREF(queue);
    PyObject *wait = tc_wait_park(kind, owner, task);
    if (!wait) {
        tc_set(tc_core.task.custom_sleep_data, task, Py_None);
        tc_wait_withdraw(queue, task);
    }
    Py_DECREF(queue);
    return wait;
}

PyObject *tc_lot_wake(PyObject *lot)
{
    PyObject *task, *nothing, *queue = Py_NewRef(tc_get(tc_core.lot.parked, lot));
    int popped = tc_pop_first(queue, &task, &nothing);
    Py_DECREF(queue);
    if (popped < 0)
        return NULL;
    Py_DECREF(nothing);
    if (tc_wake(task, NULL) < 0)
        Py_CLEAR(task);
    return task;
}

/* park(lot): what to await, or None for Trio to do it. */
PyObject *tc_park(PyObject *Py_UNUSED(module), PyObject *self)
{
    PyObject *task = tc_current_task();
    PyObject *wait = task && tc_intact(TC_locks) ? tc_lot_park(&parking, self, self, task) : NULL;
    return wait || PyErr_Occurred() ? wait : Py_NewRef(Py_None);
}

/* The first `count` tasks of the queue, which are taken out: a new list. */
static PyObject *pop_several(PyObject *queue, Py_ssize_t count)
{
    PyObject *tasks = PyList_New(0);
    for (Py_ssize_t i = 0; tasks && i < count; i++) {
        PyObject *task, *nothing;
        if (tc_pop_first(queue, &task, &nothing) < 0) {
            Py_CLEAR(tasks);
            break;
        }
        Py_DECREF(nothing);
        int appended = PyList_Append(tasks, task);
        Py_DECREF(task);
        if (appended < 0)
            Py_CLEAR(tasks);
    }
    return tasks;
}

/* unpark(lot, count): the list of the tasks, or None for Trio to do it. */
PyObject *tc_unpark(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    Py_ssize_t length = count == 2 && tc_intact(TC_locks) ? tc_lot_length(arguments[0]) : -1, wanted = length;
    if (length < 0)
        Py_RETURN_NONE;
    if (PyLong_CheckExact(arguments[1])) {
        wanted = PyLong_AsSsize_t(arguments[1]);
        PyErr_Clear();
    } else if (arguments[1] != tc_core.infinity) {
        wanted = -1;
    }
    if (wanted < 0) /* too large a number, too */
        Py_RETURN_NONE;
    PyObject *queue = Py_NewRef(tc_get(tc_core.lot.parked, arguments[0]));
    PyObject *tasks = pop_several(queue, wanted < length ? wanted : length);
    Py_DECREF(queue);
    for (Py_ssize_t i = 0; tasks && i < PyList_GET_SIZE(tasks); i++) {
        PyObject *task = Py_NewRef(PyList_GET_ITEM(tasks, i));
        if (tc_wake(task, NULL) < 0)
            Py_CLEAR(tasks);
        Py_DECREF(task);
    }
    return tasks;
}
