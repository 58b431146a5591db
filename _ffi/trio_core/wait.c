/* wait.c: the awaitable of a task at a schedule point or at one of Trio's queues, and what such waits have in common.
 *
 * Stands for:
 *     trio/_core/_traps.py   cancel_shielded_checkpoint; wait_task_rescheduled, with the abort function that its caller gives
 *                            it, which is the awaitable
 *     trio/_core/_run.py     reschedule, as trio.lowlevel has it
 *
 *     NEW ──drive──> YIELDED ──drive──> DONE     a schedule point, or the task has been parked and woken
 */
#include "wait.h"

enum { NEW, YIELDED, DONE };

#define FREE_LIST_SIZE 64
static tc_wait *free_list[FREE_LIST_SIZE];
static int free_count;

/* Takes the reference to `message`. */
static tc_wait *make(const tc_wait_kind *kind, PyObject *owner, PyObject *message)
{
    tc_wait *self;
    if (free_count > 0) {
        self = free_list[--free_count];
        PyObject_Init((PyObject *)self, &tc_wait_type);
    } else if (!(self = PyObject_GC_New(tc_wait, &tc_wait_type))) {
        Py_XDECREF(message);
        return NULL;
    }
    memset((char *)self + sizeof(PyObject), 0, sizeof *self - sizeof(PyObject));
    self->kind = kind;
    self->owner = Py_XNewRef(owner);
    self->message = message;
    self->state = NEW;
    PyObject_GC_Track(self);
    return self;
}

PyObject *tc_wait_yield(const tc_wait_kind *kind, PyObject *message)
{
    return message ? (PyObject *)make(kind, NULL, message) : NULL;
}

PyObject *tc_wait_pass(const tc_wait_kind *kind, PyObject *owner, PyObject *value)
{
    tc_wait *self = make(kind, owner, Py_NewRef(tc_core.checkpoint_message));
    if (self)
        self->value = Py_NewRef(value);
    return (PyObject *)self;
}

PyObject *tc_wait_park(const tc_wait_kind *kind, PyObject *owner, PyObject *task)
{
    tc_wait *self = make(kind, owner, NULL);
    if (!self)
        return NULL;
    self->task = Py_NewRef(task);
    /* Made here, and not when it is driven, where the caller could not take the task out of the queue again. */
    self->message = tc_trap((PyObject *)self);
    if (!self->message)
        Py_CLEAR(self);
    return (PyObject *)self;
}

void tc_wait_withdraw(PyObject *queue, PyObject *task)
{
    PyObject *exception = gt_take_exception();
    if ((PySet_Check(queue) ? PySet_Discard(queue, task) : PyObject_DelItem(queue, task)) < 0)
        PyErr_Clear(); /* it was woken meanwhile */
    gt_restore_exception(exception);
}

static int wait_clear(tc_wait *self)
{
    self->state = DONE;
    Py_CLEAR(self->message);
    Py_CLEAR(self->owner);
    Py_CLEAR(self->task);
    Py_CLEAR(self->value);
    return 0;
}

static int wait_traverse(tc_wait *self, visitproc visit, void *arg)
{
    Py_VISIT(self->message);
    Py_VISIT(self->owner);
    Py_VISIT(self->task);
    Py_VISIT(self->value);
    return 0;
}

static void wait_dealloc(tc_wait *self)
{
    PyObject_GC_UnTrack(self);
    wait_clear(self);
    if (free_count < FREE_LIST_SIZE)
        free_list[free_count++] = self;
    else
        PyObject_GC_Del(self);
}

/* --- driving --- */

/* The wait is over.  It keeps what abort() needs: one that the program has ended from outside, while its task is parked in it,
 * is still the task's abort function. */
static void end(tc_wait *self)
{
    self->state = DONE;
    Py_CLEAR(self->message);
    Py_CLEAR(self->value);
}

/* The end: what the call returns, for what it was resumed with, to which this takes the reference. */
static PySendResult conclude(tc_wait *self, PyObject *result, PyObject **returned)
{
    self->state = DONE;
    Py_INCREF(self); /* finish() may run the code that lets go of it */
    if (self->kind->finish)
        result = self->kind->finish(self, result);
    else if (result)
        Py_SETREF(result, Py_NewRef(Py_None));
    PyObject *exception = result ? NULL : gt_take_exception();
    end(self);
    Py_DECREF(self);
    if (exception)
        gt_restore_exception(exception);
    *returned = result;
    return result ? PYGEN_RETURN : PYGEN_ERROR;
}

static PySendResult begin(tc_wait *self, PyObject **result)
{
    self->state = YIELDED;
    if (self->kind->begin && self->kind->begin(self) < 0) {
        self->state = DONE;
        return PYGEN_ERROR;
    }
    *result = self->message;
    self->message = NULL;
    return PYGEN_NEXT;
}

static PySendResult drive(PyObject *object, PyObject *message, PyObject **result)
{
    tc_wait *self = (tc_wait *)object;
    *result = NULL;
    if (self->state == NEW)
        return begin(self, result);
    if (self->state == DONE) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return PYGEN_ERROR;
    }
    PyObject *resumed = tc_unwrap(message);
    if (self->state != YIELDED) { /* unwrap() is the program's code, and may have ended the wait */
        if (resumed)
            PyErr_SetString(PyExc_RuntimeError, "this wait was ended while it was resumed");
        Py_XDECREF(resumed);
        return PYGEN_ERROR;
    }
    if (!resumed)
        return conclude(self, NULL, result);
    if (self->value) /* nothing that a checkpoint is resumed with is returned */
        Py_SETREF(resumed, Py_NewRef(self->value));
    return conclude(self, resumed, result);
}

/* `message` is the exception. */
static PySendResult drive_throw(PyObject *object, PyObject *message, PyObject **result)
{
    tc_wait *self = (tc_wait *)object;
    bool waits = self->state == YIELDED; /* making the exception may have run code that has ended the wait */
    self->state = DONE;
    *result = NULL;
    gt_restore_exception(Py_NewRef(message));
    return waits ? conclude(self, NULL, result) : PYGEN_ERROR;
}

static PyObject *wait_throw(tc_wait *self, PyObject *const *arguments, Py_ssize_t count)
{
    gt_raise_thrown(arguments, count);
    PyObject *exception = gt_take_exception();
    PyObject *returned = gt_drive_by_method(drive_throw, (PyObject *)self, exception);
    Py_DECREF(exception);
    return returned;
}

static PyObject *wait_close(tc_wait *self, PyObject *Py_UNUSED(ignored))
{
    if (self->state != DONE) /* what conclude() runs may come here */
        end(self);
    Py_RETURN_NONE;
}

/* It is its own abort function: called with raise_cancel. */
static PyObject *wait_call(tc_wait *self, PyObject *arguments, PyObject *names)
{
    if (PyTuple_GET_SIZE(arguments) != 1 || (names && PyDict_GET_SIZE(names) > 0)) {
        PyErr_SetString(PyExc_TypeError, "an abort function takes one argument");
        return NULL;
    }
    if (!self->task || !self->kind->abort) {
        PyErr_SetString(PyExc_RuntimeError, "what is to be aborted is over");
        return NULL;
    }
    Py_INCREF(self);
    PyObject *result = self->kind->abort(self, PyTuple_GET_ITEM(arguments, 0));
    Py_DECREF(self);
    return result;
}

static PyMethodDef wait_methods[] = {
    {"send", gt_send, METH_O, PyDoc_STR("Resume with a message from Trio.")},
    {"throw", (PyCFunction)wait_throw, METH_FASTCALL, PyDoc_STR("End the wait with an exception.")},
    {"close", (PyCFunction)wait_close, METH_NOARGS, PyDoc_STR("End the wait.")},
    {NULL, NULL, 0, NULL},
};

static PyAsyncMethods wait_async = {
    .am_await = gt_self,
    .am_send = drive,
};

PyTypeObject tc_wait_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._trio_core.Wait",
    .tp_basicsize = sizeof(tc_wait),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = PyDoc_STR("What a task awaits in Trio; as a function, it aborts the wait."),
    .tp_dealloc = (destructor)wait_dealloc,
    .tp_traverse = (traverseproc)wait_traverse,
    .tp_clear = (inquiry)wait_clear,
    .tp_call = (ternaryfunc)wait_call,
    .tp_as_async = &wait_async,
    .tp_iter = gt_self,
    .tp_iternext = gt_next,
    .tp_methods = wait_methods,
};

/* --- what the waits have in common --- */

int tc_remove(PyObject *set, PyObject *item)
{
    if (!PySet_Check(set)) {
        PyErr_SetString(PyExc_TypeError, "Trio's tasks are not in a set");
        return -1;
    }
    int removed = PySet_Discard(set, item);
    if (removed == 0)
        PyErr_SetObject(PyExc_KeyError, item);
    return removed > 0 ? 0 : -1;
}

PyObject *tc_wait_leave_set(PyObject *set, PyObject *item)
{
    return tc_remove(set, item) < 0 ? NULL : Py_NewRef(tc_core.abort_succeeded);
}

PyObject *tc_wait_leave_dict(PyObject *dict, PyObject *item)
{
    return PyObject_DelItem(dict, item) < 0 ? NULL : Py_NewRef(tc_core.abort_succeeded);
}

int tc_pop_first(PyObject *dict, PyObject **key, PyObject **value)
{
    PyObject *arguments[] = {dict, Py_False};
    PyObject *item = PyObject_VectorcallMethod(tc_names.popitem, arguments, 1, tc_core.last_name);
    if (!item)
        return -1;
    if (!PyTuple_CheckExact(item) || PyTuple_GET_SIZE(item) != 2) {
        PyErr_SetString(PyExc_TypeError, "popitem() returns no pair");
        Py_DECREF(item);
        return -1;
    }
    *key = Py_NewRef(PyTuple_GET_ITEM(item, 0));
    *value = Py_NewRef(PyTuple_GET_ITEM(item, 1));
    Py_DECREF(item);
    return 0;
}

int tc_wake(PyObject *task, PyObject *outcome)
{
    PyObject *context = tc_context();
    PyObject *runner = context ? PyDict_GetItemWithError(context, tc_names.runner) : NULL;
    if (!runner) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "must be called from async context");
        return -1;
    }
    Py_INCREF(runner);
    int done = tc_reschedule(runner, task, outcome);
    if (done == 0) /* Trio raises what there is to raise */
        done = tc_drop(PyObject_CallMethodObjArgs(runner, tc_names.reschedule, task, outcome, NULL));
    Py_DECREF(runner);
    return done < 0 ? -1 : 0;
}

PyObject *tc_free_task(void)
{
    PyObject *task = tc_current_task();
    int cancelled = task ? tc_is_cancelled(task) : 1;
    if (cancelled < 0)
        PyErr_Clear();
    return cancelled == 0 ? task : NULL;
}
