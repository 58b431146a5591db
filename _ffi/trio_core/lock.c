/* lock.c: a lock.
 *
 * Stands for, in trio/_sync.py:
 *     _LockImpl.acquire with acquire_nowait, _LockImpl.release           of a Lock and of a StrictFIFOLock, in a task
 *     AsyncContextManagerMixin.__aenter__ and __aexit__                 of these
 * and in trio/_core/_parking_lot.py:
 *     add_parking_lot_breaker, remove_parking_lot_breaker               which Trio has since 0.27
 *
 * What is refused (taking a lock twice, releasing another task's, one whose owner is gone) is Trio's to refuse.
 */
#include "parking_lot.h"

/* The owner of this lock may exit without releasing it.  A lock that was free is not waited for, and has no owner here. */
static PyObject *finish_acquire(tc_wait *self, PyObject *result)
{
    if (result)
        Py_SETREF(result, Py_NewRef(Py_None));
    else if (self->owner && PyErr_ExceptionMatches(tc_core.broken_resource_error)) {
        PyObject *exception = gt_take_exception();
        PyObject *translated = PyObject_CallFunctionObjArgs(tc_core.broken_lock, self->owner, exception, NULL);
        Py_DECREF(exception);
        if (translated)
            gt_restore_exception(translated);
    }
    return result;
}

static const tc_wait_kind acquiring = {.abort = tc_lot_abort, .finish = finish_acquire};

typedef struct {
    PyObject *owner, *lot; /* owned */
} parts;

static void release_parts(parts *of)
{
    Py_CLEAR(of->owner);
    Py_CLEAR(of->lot);
}

/* One that Trio's own code and this have in common. */
static bool is_lock(PyObject *lock)
{
    return (Py_IS_TYPE(lock, tc_core.lock_type) || Py_IS_TYPE(lock, tc_core.fifo_lock_type)) && tc_intact(TC_locks);
}

/* false: Trio has to do it, and there is no exception. */
static bool take_apart(PyObject *lock, parts *of)
{
    of->owner = of->lot = NULL;
    if (!is_lock(lock))
        return false;
    of->owner = PyObject_GetAttr(lock, tc_names._owner);
    of->lot = of->owner ? PyObject_GetAttr(lock, tc_names._lot) : NULL;
    if (of->lot && tc_lot_length(of->lot) >= 0)
        return true;
    PyErr_Clear();
    release_parts(of);
    return false;
}

/* --- who breaks a lot by exiting --- */

static int add_breaker(PyObject *task, PyObject *lot)
{
    if (!tc_core.breaks_lots)
        return 0;
    PyObject *lots = PyDict_GetItemWithError(tc_core.lot_breakers, task);
    if (lots && PyList_Check(lots))
        return PyList_Append(lots, lot);
    if (lots) {
        PyErr_SetString(PyExc_TypeError, "the parking lots that a task breaks are not in a list");
        return -1;
    }
    lots = PyErr_Occurred() ? NULL : PyList_New(1);
    if (!lots)
        return -1;
    PyList_SET_ITEM(lots, 0, Py_NewRef(lot));
    int result = PyDict_SetItem(tc_core.lot_breakers, task, lots);
    Py_DECREF(lots);
    return result;
}

/* The place of the lot among those that the task breaks, and their list, borrowed; -1: it is not there. */
static Py_ssize_t find_breaker(PyObject *task, PyObject *lot, PyObject **lots)
{
    *lots = PyDict_GetItemWithError(tc_core.lot_breakers, task);
    PyErr_Clear();
    for (Py_ssize_t i = 0; *lots && PyList_CheckExact(*lots) && i < PyList_GET_SIZE(*lots); i++)
        if (PyList_GET_ITEM(*lots, i) == lot)
            return i;
    return -1;
}

static int remove_breaker(PyObject *task, PyObject *lots, Py_ssize_t place)
{
    if (PyList_GET_SIZE(lots) == 1)
        return PyDict_DelItem(tc_core.lot_breakers, task);
    return PyList_SetSlice(lots, place, place + 1, NULL);
}

/* --- acquire --- */

static int take(PyObject *lock, PyObject *lot, PyObject *task)
{
    if (add_breaker(task, lot) < 0)
        return -1;
    if (PyObject_SetAttr(lock, tc_names._owner, task) == 0)
        return 0;
    PyObject *exception = gt_take_exception(), *lots;
    Py_ssize_t place = find_breaker(task, lot, &lots);
    if (place >= 0 && remove_breaker(task, lots, place) < 0)
        PyErr_Clear();
    gt_restore_exception(exception);
    return -1;
}

/* A new awaitable; NULL without an exception: Trio has to do it. */
static PyObject *acquire(PyObject *lock, parts *of, PyObject *task)
{
    if (of->owner == task)
        return NULL;
    bool is_free = of->owner == Py_None && tc_lot_length(of->lot) == 0;
    PyObject *wait = is_free ? tc_wait_pass(&acquiring, NULL, Py_None) : tc_lot_park(&acquiring, lock, of->lot, task);
    /* The cancel point of checkpoint_if_cancelled(), last, because nothing of the rest may fail after it. */
    if (wait && is_free && take(lock, of->lot, task) < 0)
        Py_CLEAR(wait);
    if (wait && tc_add(tc_core.task.cancel_points, task, 1) < 0)
        PyErr_Clear(); /* a number for statistics, which stays what it was */
    return wait;
}

/* acquire(lock): what to await, or None for Trio to do it. */
PyObject *tc_acquire(PyObject *Py_UNUSED(module), PyObject *self)
{
    parts of;
    if (!is_lock(self) || !tc_is_own(self, tc_names.acquire_nowait, tc_core.acquire_nowait_method))
        Py_RETURN_NONE;
    PyObject *task = tc_free_task();
    if (!task || !take_apart(self, &of))
        Py_RETURN_NONE;
    PyObject *wait = acquire(self, &of, task);
    release_parts(&of);
    return wait || PyErr_Occurred() ? wait : Py_NewRef(Py_None);
}

/* lock_enter(lock): the same for __aenter__, which other things than locks have, too. */
PyObject *tc_lock_enter(PyObject *module, PyObject *self)
{
    if (!is_lock(self) || !tc_is_own(self, tc_names.acquire, tc_core.acquire_method))
        Py_RETURN_NONE;
    return tc_acquire(module, self);
}

/* --- release --- */

static int pass_on(PyObject *lock, PyObject *lot)
{
    if (tc_lot_length(lot) == 0)
        return PyObject_SetAttr(lock, tc_names._owner, Py_None);
    PyObject *next = tc_lot_wake(lot);
    int result = next ? PyObject_SetAttr(lock, tc_names._owner, next) : -1;
    if (result == 0)
        result = add_breaker(next, lot);
    Py_XDECREF(next);
    return result;
}

/* release(lock): whether it is done. */
PyObject *tc_release(PyObject *Py_UNUSED(module), PyObject *self)
{
    parts of;
    PyObject *task = tc_current_task(), *lots = NULL;
    if (!task || !take_apart(self, &of))
        Py_RETURN_FALSE;
    Py_ssize_t place = of.owner == task && tc_core.breaks_lots ? find_breaker(task, of.lot, &lots) : 0;
    int result = 0;
    bool usual = of.owner == task && place >= 0;
    if (usual && lots)
        result = remove_breaker(task, lots, place);
    if (usual && result == 0)
        result = pass_on(self, of.lot);
    release_parts(&of);
    return result < 0 ? NULL : PyBool_FromLong(usual);
}

/* lock_exit(lock): the same for __aexit__. */
PyObject *tc_lock_exit(PyObject *module, PyObject *self)
{
    if (!is_lock(self) || !tc_is_own(self, tc_names.release, tc_core.release_method))
        Py_RETURN_FALSE;
    return tc_release(module, self);
}
