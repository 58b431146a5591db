/* waiter.c: parked tasks (call.h): how a call takes a waiter, and what wakes, stops and cancels its wait.
 *
 * A waiter's trap is a cycle with it, and costs two objects, so a proactor keeps some waiters for its next calls.
 */
#include "fastpath.h"

#define MOST_SPARE 256 /* waiters that a proactor keeps */

gt_waiter *gt_waiter_take(gt_proactor *proactor)
{
    gt_waiter *waiter = proactor->spare_waiters;
    if (waiter) {
        proactor->spare_waiters = waiter->next;
        proactor->spare_count--;
        return waiter;
    }
    waiter = PyObject_GC_New(gt_waiter, &gt_waiter_type);
    if (!waiter)
        return NULL;
    memset((char *)waiter + sizeof(PyObject), 0, sizeof *waiter - sizeof(PyObject));
    waiter->succeeded = Py_NewRef(proactor->trio.abort_succeeded);
    PyObject_GC_Track(waiter);
    waiter->trap = PyObject_CallOneArg(proactor->trio.trap_type, (PyObject *)waiter);
    if (!waiter->trap)
        Py_CLEAR(waiter);
    return waiter;
}

/* Takes the caller's reference. */
static void drop_waiter(gt_waiter *waiter)
{
    Py_CLEAR(waiter->trap);
    Py_DECREF(waiter);
}

void gt_waiter_give_back(gt_proactor *proactor, gt_waiter *waiter)
{
    PyObject *task = waiter->task;
    waiter->task = NULL;
    waiter->call = NULL;
    /* Where a task is still parked by it, the call was dropped, or ended by the program, amidst the wait.  Trio may call the waiter
     * for a cancellation of that task, so no other call may have it. */
    if (!task && proactor->spare_count < MOST_SPARE && !proactor->closed && !waiter->is_ready) {
        waiter->next = proactor->spare_waiters;
        proactor->spare_waiters = waiter;
        proactor->spare_count++;
    } else {
        drop_waiter(waiter);
    }
    Py_XDECREF(task);
}

void gt_waiters_drop_spare(gt_proactor *proactor)
{
    gt_waiter *waiter;
    while ((waiter = proactor->spare_waiters)) {
        proactor->spare_waiters = waiter->next;
        proactor->spare_count--;
        drop_waiter(waiter);
    }
}

/* The task is there. */
GT_INLINED int wake(gt_waiter *waiter, bool in_place)
{
    PyObject *task = waiter->task;
    gt_proactor *proactor = waiter->call->proactor;
    waiter->task = NULL;
    int result = 0;
    if (!GT_UNLIKELY(proactor->closed)) /* else the run is over, and its tasks with it */
        result = gt_proactor_wake(proactor, task, waiter, in_place);
    Py_DECREF(task);
    return result;
}

int gt_waiter_wake(gt_waiter *waiter, bool in_place) { return waiter->task ? wake(waiter, in_place) : 0; }

int gt_waiter_resume(gt_waiter *waiter)
{
    gt_call *call = waiter->call;
    /* It was satisfied when it came on the list, and may not be any more. */
    return waiter->task && call->kind->is_satisfied(call) ? wake(waiter, call->kind->in_place) : 0;
}

PyObject *gt_call_stop(gt_call *self)
{
    PyObject *task = NULL;
    if (self->waiter) {
        task = self->waiter->task;
        self->waiter->task = NULL;
    }
    if (self->kind->stopped) {
        Py_INCREF(self); /* the kernel's reference may be the last one */
        self->kind->stopped(self);
        Py_DECREF(self);
    }
    return task;
}

/* The call is in progress still, until its task runs and raises the cancellation. */
static PyObject *waiter_abort(gt_waiter *self, PyObject *args, PyObject *kwargs)
{
    PyObject *raise_cancel;
    static char *names[] = {"raise_cancel", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:abort", names, &raise_cancel))
        return NULL;
    PyObject *succeeded = Py_NewRef(self->succeeded);
    if (self->call) {
        PyObject *task = gt_call_stop(self->call);
        Py_XDECREF(task);
    }
    return succeeded;
}

static int waiter_traverse(gt_waiter *self, visitproc visit, void *arg)
{
    Py_VISIT(self->task);
    Py_VISIT(self->trap);
    Py_VISIT(self->succeeded);
    return 0;
}

static int waiter_clear(gt_waiter *self)
{
    Py_CLEAR(self->task);
    Py_CLEAR(self->trap);
    return 0;
}

static void waiter_dealloc(gt_waiter *self)
{
    PyObject_GC_UnTrack(self);
    waiter_clear(self);
    Py_CLEAR(self->succeeded);
    PyObject_GC_Del(self);
}

PyTypeObject gt_waiter_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._fastpath.Waiter",
    .tp_basicsize = sizeof(gt_waiter),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = PyDoc_STR("A parked task; Trio calls this to cancel its wait."),
    .tp_dealloc = (destructor)waiter_dealloc,
    .tp_traverse = (traverseproc)waiter_traverse,
    .tp_clear = (inquiry)waiter_clear,
    .tp_call = (ternaryfunc)waiter_abort,
};
