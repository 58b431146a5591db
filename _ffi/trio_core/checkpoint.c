/* checkpoint.c: what a task awaits to let others run, and to be parked.
 *
 * Stands for:
 *     trio/_core/_traps.py   cancel_shielded_checkpoint, wait_task_rescheduled
 *     trio/_core/_run.py     checkpoint: its schedule point, and the rest of it when nothing is cancelled;
 *                            checkpoint_if_cancelled, when nothing is cancelled
 *
 * The awaitable is made when Trio's function has begun to run, and is driven twice: once to yield Trio's own message, once
 * to unwrap the outcome that the task is resumed with.
 */
#include "wait.h"

/* Whether the checkpoint is over; if not, it was cancelled, and Trio's own code does the rest. */
static PyObject *pass(void)
{
    PyObject *task = tc_intact(TC_checkpoints) ? tc_current_task() : NULL;
    if (!task)
        Py_RETURN_FALSE;
    int cancelled = tc_is_cancelled(task);
    if (cancelled < 0 || (!cancelled && tc_add(tc_core.task.cancel_points, task, 1) < 0))
        return NULL;
    return PyBool_FromLong(!cancelled);
}

static PyObject *finish_checkpoint(tc_wait *Py_UNUSED(self), PyObject *result)
{
    if (result)
        Py_SETREF(result, pass());
    return result;
}

static PyObject *finish_parked(tc_wait *Py_UNUSED(self), PyObject *result) { return result; }

static const tc_wait_kind passing = {.finish = finish_checkpoint}, shielded = {.finish = NULL},
                          parked = {.finish = finish_parked};

/* An awaitable: a schedule point; returns whether the checkpoint is over.  This and the next two: None for Trio to do it. */
PyObject *tc_checkpoint(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    if (!tc_intact(TC_checkpoints))
        Py_RETURN_NONE;
    return tc_wait_yield(&passing, Py_NewRef(tc_core.checkpoint_message));
}

PyObject *tc_shielded_checkpoint(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    if (!tc_intact(TC_checkpoints))
        Py_RETURN_NONE;
    return tc_wait_yield(&shielded, Py_NewRef(tc_core.checkpoint_message));
}

/* No awaitable: whether nothing is cancelled, which is then counted. */
PyObject *tc_pass_checkpoint(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored)) { return pass(); }

PyObject *tc_wait_rescheduled(PyObject *Py_UNUSED(module), PyObject *abort_func)
{
    if (!tc_intact(TC_checkpoints))
        Py_RETURN_NONE;
    return tc_wait_yield(&parked, tc_trap(abort_func));
}
