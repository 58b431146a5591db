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
#include "core.h"

enum { CHECKPOINT, SHIELDED, PARKED };
enum { NEW, YIELDED, DONE };

typedef struct {
    PyObject_HEAD
    PyObject *message; /* what is yielded; NULL once it has been */
    uint8_t kind, state;
} awaitable;

#define FREE_LIST_SIZE 64
static awaitable *free_list[FREE_LIST_SIZE];
static int free_count;

/* Takes the reference to `message`, which may be NULL with an exception set. */
static PyObject *make(uint8_t kind, PyObject *message)
{
    if (!message)
        return NULL;
    awaitable *self;
    if (free_count > 0) {
        self = free_list[--free_count];
        PyObject_Init((PyObject *)self, &tc_checkpoint_type);
    } else if (!(self = PyObject_GC_New(awaitable, &tc_checkpoint_type))) {
        Py_DECREF(message);
        return NULL;
    }
    self->message = message;
    self->kind = kind;
    self->state = NEW;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

/* Whether the checkpoint is over; if not, it was cancelled, and Trio's own code does the rest. */
static PyObject *pass(PyObject *Py_UNUSED(self))
{
    PyObject *task = tc_current_task();
    if (!task)
        Py_RETURN_FALSE;
    int cancelled = tc_is_cancelled(task);
    if (cancelled < 0 || (!cancelled && tc_add(tc_core.task.cancel_points, task, 1) < 0))
        return NULL;
    return PyBool_FromLong(!cancelled);
}

static PySendResult drive(PyObject *object, PyObject *message, PyObject **result)
{
    awaitable *self = (awaitable *)object;
    *result = NULL;
    if (self->state == NEW) {
        self->state = YIELDED;
        *result = self->message;
        self->message = NULL;
        return PYGEN_NEXT;
    }
    if (self->state == DONE) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return PYGEN_ERROR;
    }
    self->state = DONE;
    *result = tc_unwrap(message);
    if (*result && self->kind == CHECKPOINT)
        Py_SETREF(*result, pass(object));
    return *result ? PYGEN_RETURN : PYGEN_ERROR;
}

static PyObject *awaitable_send(PyObject *self, PyObject *message) { return gt_drive_by_method(drive, self, message); }

static PyObject *awaitable_next(PyObject *self) { return gt_drive_by_method(drive, self, Py_None); }

static PyObject *awaitable_throw(awaitable *self, PyObject *const *arguments, Py_ssize_t count)
{
    self->state = DONE;
    return gt_raise_thrown(arguments, count);
}

static PyObject *awaitable_close(awaitable *self, PyObject *Py_UNUSED(ignored))
{
    self->state = DONE;
    Py_RETURN_NONE;
}

static int awaitable_traverse(awaitable *self, visitproc visit, void *arg)
{
    Py_VISIT(self->message);
    return 0;
}

static int awaitable_clear(awaitable *self)
{
    self->state = DONE; /* without its message it cannot be driven */
    Py_CLEAR(self->message);
    return 0;
}

static void awaitable_dealloc(awaitable *self)
{
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->message);
    if (free_count < FREE_LIST_SIZE)
        free_list[free_count++] = self;
    else
        PyObject_GC_Del(self);
}

static PyMethodDef awaitable_methods[] = {
    {"send", awaitable_send, METH_O, PyDoc_STR("Resume with a message from Trio.")},
    {"throw", (PyCFunction)awaitable_throw, METH_FASTCALL, PyDoc_STR("End the wait with an exception.")},
    {"close", (PyCFunction)awaitable_close, METH_NOARGS, PyDoc_STR("End the wait.")},
    {NULL, NULL, 0, NULL},
};

static PyAsyncMethods awaitable_async = {
    .am_await = gt_self,
    .am_send = drive,
};

PyTypeObject tc_checkpoint_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._trio_core.Checkpoint",
    .tp_basicsize = sizeof(awaitable),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = PyDoc_STR("What a task awaits at a schedule point."),
    .tp_dealloc = (destructor)awaitable_dealloc,
    .tp_traverse = (traverseproc)awaitable_traverse,
    .tp_clear = (inquiry)awaitable_clear,
    .tp_as_async = &awaitable_async,
    .tp_iter = gt_self,
    .tp_iternext = awaitable_next,
    .tp_methods = awaitable_methods,
};

/* An awaitable: a schedule point; returns whether the checkpoint is over. */
PyObject *tc_checkpoint(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return make(CHECKPOINT, Py_NewRef(tc_core.checkpoint_message));
}

PyObject *tc_shielded_checkpoint(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return make(SHIELDED, Py_NewRef(tc_core.checkpoint_message));
}

/* No awaitable: whether nothing is cancelled, which is then counted. */
PyObject *tc_pass_checkpoint(PyObject *module, PyObject *Py_UNUSED(ignored)) { return pass(module); }

PyObject *tc_wait_rescheduled(PyObject *Py_UNUSED(module), PyObject *abort_func)
{
    return make(PARKED, tc_trap(abort_func));
}
