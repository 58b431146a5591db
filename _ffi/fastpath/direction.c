/* direction.c: one direction of a connection: the task that waits in it, the trap that it yields, and the abort function that
 * Trio calls to cancel it.
 */
#include "fastpath.h"

static PyObject *abort_call(gt_abort *self, PyObject *args, PyObject *kwargs)
{
    PyObject *raise_cancel;
    static char *names[] = {"raise_cancel", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:abort", names, &raise_cancel))
        return NULL;
    if (self->connection) {
        /* The call stays `in progress` until its task runs and is told of the cancellation. */
        Py_CLEAR(self->direction->task);
    }
    return Py_NewRef(self->succeeded);
}

static int abort_traverse(gt_abort *self, visitproc visit, void *arg)
{
    Py_VISIT(self->succeeded);
    return 0;
}

static void abort_dealloc(gt_abort *self)
{
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->succeeded);
    PyObject_GC_Del(self);
}

PyTypeObject gt_abort_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._fastpath.Abort",
    .tp_basicsize = sizeof(gt_abort),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = PyDoc_STR("Trio calls this to cancel a call that waits."),
    .tp_dealloc = (destructor)abort_dealloc,
    .tp_traverse = (traverseproc)abort_traverse,
    .tp_call = (ternaryfunc)abort_call,
};

PyObject *gt_direction_trap(gt_connection *connection, gt_direction *direction)
{
    if (direction->trap)
        return direction->trap;
    gt_trio *trio = &connection->reactor->trio;
    gt_abort *abort = PyObject_GC_New(gt_abort, &gt_abort_type);
    if (!abort)
        return NULL;
    abort->connection = connection;
    abort->direction = direction;
    abort->succeeded = Py_NewRef(trio->abort_succeeded);
    PyObject_GC_Track(abort);
    PyObject *trap = PyObject_CallOneArg(trio->trap_type, (PyObject *)abort);
    if (!trap) {
        abort->connection = NULL;
        Py_DECREF(abort);
        return NULL;
    }
    direction->trap = trap;
    direction->abort = abort;
    return trap;
}

void gt_direction_clear(gt_direction *direction)
{
    if (direction->abort) {
        direction->abort->connection = NULL;
        Py_CLEAR(direction->abort);
    }
    Py_CLEAR(direction->trap);
    Py_CLEAR(direction->task);
}

/* Let the task that waits in this direction, if any, look at the state again. */
int gt_connection_wake_direction(gt_connection *connection, gt_direction *direction, bool in_place)
{
    PyObject *task = direction->task;
    if (!task)
        return 0;
    direction->task = NULL;
    if (connection->reactor->closed) { /* and with it the run: there is nobody to wake the task any more */
        Py_DECREF(task);
        return 0;
    }
    int result = gt_reactor_wake(connection->reactor, task, (PyObject *)direction->abort, in_place);
    Py_DECREF(task);
    return result;
}
