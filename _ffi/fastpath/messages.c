/* messages.c: the iterator that a connection's messages() returns, for pieces as they arrive.
 *
 * It has no state but the connection, so it can be left at any time and begun again.
 */
#include "fastpath.h"

typedef struct {
    PyObject_HEAD
    gt_connection *connection;
} gt_messages;

PyObject *gt_connection_chunks(gt_connection *self, PyObject *Py_UNUSED(ignored))
{
    gt_messages *messages = PyObject_GC_New(gt_messages, &gt_messages_type);
    if (!messages)
        return NULL;
    messages->connection = (gt_connection *)Py_NewRef(self);
    PyObject_GC_Track(messages);
    return (PyObject *)messages;
}

static PyObject *messages_next(gt_messages *self) { return gt_connection_message(self->connection); }

static int messages_traverse(gt_messages *self, visitproc visit, void *arg)
{
    Py_VISIT(self->connection);
    return 0;
}

static void messages_dealloc(gt_messages *self)
{
    PyObject_GC_UnTrack(self);
    Py_DECREF(self->connection);
    PyObject_GC_Del(self);
}

static PyAsyncMethods messages_async = {
    .am_aiter = gt_self,
    .am_anext = (unaryfunc)messages_next,
};

PyTypeObject gt_messages_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._fastpath.Messages",
    .tp_basicsize = sizeof(gt_messages),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = PyDoc_STR("What a connection's messages() returns."),
    .tp_dealloc = (destructor)messages_dealloc,
    .tp_traverse = (traverseproc)messages_traverse,
    .tp_as_async = &messages_async,
};
