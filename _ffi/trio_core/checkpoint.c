/* checkpoint.c: what a task awaits to let others run, and to be parked.
 *
 * Stands for:
 *     trio/_core/_traps.py   cancel_shielded_checkpoint, wait_task_rescheduled
 *     trio/_core/_run.py     checkpoint: its schedule point, and the rest of it when nothing is cancelled;
 *                            checkpoint_if_cancelled, when nothing is cancelled
 *
 * The awaitable is made when Trio's function has begun to run, and is driven twice: once to yield Trio's own message, once
 * to unwrap the outcome that the task is resumed with.  A parked task's is wait.c's.  That of a schedule point is the one that
 * there are most of, and refers to nothing:
 *
 *     NEW ──drive──> YIELDED ──drive──> DONE
 */
#include "wait.h"

enum { NEW, YIELDED, DONE };

typedef struct {
    PyObject_HEAD
    bool shielded;
    uint8_t state;
} schedule_point;

#define FREE_LIST_SIZE 64
static schedule_point *free_list[FREE_LIST_SIZE];
static int free_count;

static PyObject *new_point(bool shielded)
{
    schedule_point *self;
    if (free_count > 0) {
        self = free_list[--free_count];
        PyObject_Init((PyObject *)self, &tc_point_type);
    } else if (!(self = PyObject_New(schedule_point, &tc_point_type))) {
        return NULL;
    }
    self->shielded = shielded;
    self->state = NEW;
    return (PyObject *)self;
}

static void point_dealloc(schedule_point *self)
{
    if (free_count < FREE_LIST_SIZE)
        free_list[free_count++] = self;
    else
        PyObject_Free(self);
}

/* Whether the checkpoint is over; if not, it was cancelled, and Trio's own code does the rest. */
static PyObject *pass(bool intact)
{
    PyObject *task = intact ? tc_current_task() : NULL;
    if (!task)
        Py_RETURN_FALSE;
    int cancelled = tc_is_cancelled(task);
    if (cancelled < 0 || (!cancelled && tc_add(tc_core.task.cancel_points, task, 1) < 0))
        return NULL;
    return PyBool_FromLong(!cancelled);
}

/* The task goes on, with an outcome: what the call returns. */
static PyObject *resume(schedule_point *self, PyObject *message)
{
    bool intact = tc_intact(TC_checkpoints); /* and so are outcomes, then */
    PyObject *value = intact ? tc_unwrap_value(message) : NULL;
    if (!value) {
        value = tc_unwrap(message);
        if (self->state != YIELDED) { /* unwrap() is the program's code, and may have ended the wait */
            if (value)
                PyErr_SetString(PyExc_RuntimeError, "this wait was ended while it was resumed");
            Py_XDECREF(value);
            return NULL;
        }
        intact = tc_intact(TC_checkpoints);
    }
    self->state = DONE;
    PyObject *result = !value ? NULL : self->shielded ? Py_NewRef(Py_None) : pass(intact);
    Py_XDECREF(value);
    return result;
}

static PySendResult drive(PyObject *object, PyObject *message, PyObject **result)
{
    schedule_point *self = (schedule_point *)object;
    if (self->state == NEW) {
        self->state = YIELDED;
        *result = Py_NewRef(tc_core.checkpoint_message);
        return PYGEN_NEXT;
    }
    if (self->state == DONE) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        *result = NULL;
    } else {
        *result = resume(self, message);
    }
    return *result ? PYGEN_RETURN : PYGEN_ERROR;
}

static PyObject *point_throw(schedule_point *self, PyObject *const *arguments, Py_ssize_t count)
{
    gt_raise_thrown(arguments, count);
    self->state = DONE;
    return NULL;
}

static PyObject *point_close(schedule_point *self, PyObject *Py_UNUSED(ignored))
{
    self->state = DONE;
    Py_RETURN_NONE;
}

static PyMethodDef point_methods[] = {
    {"send", gt_send, METH_O, PyDoc_STR("Resume with a message from Trio.")},
    {"throw", (PyCFunction)point_throw, METH_FASTCALL, PyDoc_STR("End the wait with an exception.")},
    {"close", (PyCFunction)point_close, METH_NOARGS, PyDoc_STR("End the wait.")},
    {NULL, NULL, 0, NULL},
};

static PyAsyncMethods point_async = {
    .am_await = gt_self,
    .am_send = drive,
};

PyTypeObject tc_point_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._trio_core.SchedulePoint",
    .tp_basicsize = sizeof(schedule_point),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = PyDoc_STR("A schedule point of a Trio task."),
    .tp_dealloc = (destructor)point_dealloc,
    .tp_as_async = &point_async,
    .tp_iter = gt_self,
    .tp_iternext = gt_next,
    .tp_methods = point_methods,
};

static PyObject *finish_parked(tc_wait *Py_UNUSED(self), PyObject *result) { return result; }

static const tc_wait_kind parked = {.finish = finish_parked};

/* An awaitable: a schedule point; returns whether the checkpoint is over.  This and the next two: None for Trio to do it.
 * These take no arguments, of which there is no need to be sure: Trio's functions call them. */
PyObject *tc_checkpoint(PyObject *Py_UNUSED(module), PyObject *const *Py_UNUSED(arguments), Py_ssize_t Py_UNUSED(count))
{
    return tc_intact(TC_checkpoints) ? new_point(false) : Py_NewRef(Py_None);
}

PyObject *tc_shielded_checkpoint(PyObject *Py_UNUSED(module), PyObject *const *Py_UNUSED(arguments),
                                 Py_ssize_t Py_UNUSED(count))
{
    return tc_intact(TC_checkpoints) ? new_point(true) : Py_NewRef(Py_None);
}

/* No awaitable: whether nothing is cancelled, which is then counted. */
PyObject *tc_pass_checkpoint(PyObject *Py_UNUSED(module), PyObject *const *Py_UNUSED(arguments),
                             Py_ssize_t Py_UNUSED(count))
{
    return pass(tc_intact(TC_checkpoints));
}

PyObject *tc_wait_rescheduled(PyObject *Py_UNUSED(module), PyObject *abort_func)
{
    if (!tc_intact(TC_checkpoints))
        Py_RETURN_NONE;
    return tc_wait_yield(&parked, tc_trap(abort_func));
}
