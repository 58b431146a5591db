/* proactor.c: the Python type of a proactor, from its ring to its end.  What it does once a tick is in reaping.c.
 *
 * Only close() may give back memory that the kernel knows: it ends every operation, waits for their final completions, and
 * leaks what the kernel does not let go of.  Two other ends have no ring to wait on: a run that its host has abandoned, found
 * by the garbage collector in another thread, and the child of a fork, in which everything belongs to the parent.
 */
#include "endpoint.h"

#include <sys/eventfd.h>
#include <unistd.h>

#define CLOSE_PATIENCE_NS (5LL * 1000000000) /* how long close() waits for what is in flight */
#define DEFAULT_SLICE_NS 1000000

/* --- life --- */

static int proactor_init(gt_proactor *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"ring_address", "ring_owner",     "make_broken", "closed_error",
                            "busy_error",   "too_slow_error", "in_place",    NULL};
    unsigned long long address;
    PyObject *owner, *make_broken, *closed_error, *busy_error, *too_slow_error;
    int in_place;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "KOOOOOp:Proactor", names, &address, &owner, &make_broken,
                                     &closed_error, &busy_error, &too_slow_error, &in_place))
        return -1;
    struct gt_ring *ring = (struct gt_ring *)(uintptr_t)address;
    if (self->ring || !ring || ring->magic != GT_RING_MAGIC || ring->dead) {
        PyErr_SetString(PyExc_ValueError, "Proactor() takes the address of an open ring of this build, once");
        return -1;
    }
    self->batch_capacity = ring->cq_entries;
    self->batch = PyMem_New(struct io_uring_cqe, self->batch_capacity);
    self->completions = PyList_New(0);
    if (!self->batch || !self->completions) {
        PyErr_NoMemory();
        return -1;
    }
    self->ring_owner = Py_NewRef(owner);
    self->make_broken = Py_NewRef(make_broken);
    self->closed_error = Py_NewRef(closed_error);
    self->busy_error = Py_NewRef(busy_error);
    self->too_slow_error = Py_NewRef(too_slow_error);
    self->in_place = in_place;
    self->slice_ns = DEFAULT_SLICE_NS;
    gt_proactor_begin_slice(self);
    self->thread = PyThread_get_thread_ident();
    self->own_thread = gt_this_thread();
    self->completion_descriptor = -1;
    self->wakeup_descriptor = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (self->wakeup_descriptor < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    self->ring = ring;
    gt_buffers_adapt(&ring->buffers);
    gt_bytes_buffers_init(&self->bytes_buffers, ring);
    return 0;
}

static PyObject *proactor_bind(gt_proactor *self, PyObject *seam)
{
    if (!gt_proactor_check_open(self) || gt_trio_bind(&self->trio, seam) < 0)
        return NULL;
    PyObject *is_guest = PyObject_GetAttrString(seam, "is_guest");
    if (!is_guest)
        return NULL;
    self->guest = is_guest == Py_True;
    Py_DECREF(is_guest);
    if (self->guest) /* one that its host abandons may be closed by another thread */
        gt_ring_unregister_fd(self->ring);
    Py_RETURN_NONE;
}

/* An eventfd made once, for the ring to count its completions on.  Made here, and not by Python, because here no signal's handler
 * can come between the descriptor and its owner. */
static PyObject *proactor_count_completions(gt_proactor *self, PyObject *Py_UNUSED(ignored))
{
    if (!gt_proactor_check_open(self))
        return NULL;
    if (self->completion_descriptor < 0)
        self->completion_descriptor = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return self->completion_descriptor < 0 ? PyErr_SetFromErrno(PyExc_OSError)
                                           : PyLong_FromLong(self->completion_descriptor);
}

static PyObject *proactor_poll(gt_proactor *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 4 || !PyDict_CheckExact(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "poll() takes a dict, a descriptor, events, and whether it is a socket");
        return NULL;
    }
    unsigned long events = PyLong_AsUnsignedLongMask(arguments[2]);
    if (PyErr_Occurred() || !gt_proactor_check_open(self))
        return NULL;
    return gt_poll_new(self, arguments[0], arguments[1], (uint32_t)events, arguments[3] == Py_True);
}

/* Have the kernel let go of the files of waits that were ended.  Nothing is reaped: a task runs, and finds the state that it
 * knows. */
static PyObject *proactor_settle(gt_proactor *self, PyObject *Py_UNUSED(ignored))
{
    if (self->ring && !self->closed && self->ring->abandoned > 0)
        gt_ring_settle(self->ring);
    Py_RETURN_NONE;
}

static void complete_while_closing(const struct io_uring_cqe *cqe, void *context)
{
    gt_proactor *proactor = context;
    struct gt_slot slot;
    if (!gt_slot_complete(proactor->ring, cqe, &slot))
        return;
    if (slot.kind == GT_SLOT_STREAM)
        gt_stream_complete(slot.owner, cqe);
    else if (slot.kind == GT_SLOT_SOCKET)
        gt_socket_complete(slot.owner, cqe);
    else if (!slot.owner)
        gt_completion_discard(&slot, cqe);
    else if (gt_key_tag(cqe->user_data) == GT_TAG_MAIN && gt_completion_is_final(cqe) && !slot.abandoned)
        gt_poll_drop(slot.owner); /* an abandoned one has given its reference back already */
}

/* The connections outlive the proactor as empty shells; a program that still has one finds it closed. */
static void detach_streams(gt_proactor *self)
{
    for (gt_stream *stream = self->streams; stream; stream = stream->next) {
        gt_stream_close(stream, stream->outbound.size > 0); /* what is unsent stays so, and the peer must see that */
        if (stream->connection) {
            stream->connection->closed = true;
            stream->connection->stream = NULL;
            stream->connection = NULL;
        }
    }
}

/* Close the descriptors that were accepted, and that no task will take. */
static void discard_completions(gt_proactor *self)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(self->completions); i++) {
        unsigned long long key;
        unsigned int flags;
        int result, is_descriptor;
        if (PyArg_ParseTuple(PyList_GET_ITEM(self->completions, i), "KiIi", &key, &result, &flags, &is_descriptor) &&
            is_descriptor)
            close(result);
    }
}

static void close_descriptor(int *descriptor)
{
    if (*descriptor >= 0)
        close(*descriptor);
    *descriptor = -1;
}

static void close_descriptors(gt_proactor *self)
{
    close_descriptor(&self->wakeup_descriptor);
    close_descriptor(&self->completion_descriptor);
}

/* The run is over.  With operations in flight what they are about is the kernel's still, and is leaked on purpose. */
static void free_memory(gt_proactor *self, uint64_t in_flight)
{
    while (self->streams && in_flight == 0)
        gt_stream_destroy(self->streams);
    self->streams = NULL;
    gt_sockets_free(self, in_flight > 0);
    gt_bytes_buffers_free(&self->bytes_buffers, self->ring, in_flight > 0);
    gt_spares_limit(&self->spares, 0);
    gt_trio_unbind(&self->trio);
}

/* A run's end in another thread: the garbage collector has found one there that its host has abandoned (trio.lowlevel's guest
 * mode).  The ring cannot be entered from here, so the descriptors are closed one by one, and its operations end when it is
 * closed itself.  Until then the kernel may touch their memory, which is leaked. */
static uint64_t abandon_run(gt_proactor *self)
{
    self->closed = true;
    detach_streams(self); /* before the sockets, as in a close */
    for (gt_stream *stream = self->streams; stream; stream = stream->next)
        close_descriptor(&stream->fd);
    gt_sockets_abandon(self);
    uint64_t in_flight = self->ring->in_flight;
    self->wanting_first = self->wanting_last = self->wanting_starved = NULL;
    free_memory(self, in_flight);
    return in_flight;
}

/* Close every connection and end every operation.  How many are in flight still: 0, unless the kernel does not end them. */
static PyObject *proactor_close(gt_proactor *self, PyObject *Py_UNUSED(ignored))
{
    if (self->closed || !self->ring)
        return PyLong_FromLong(0);
    bool elsewhere = PyThread_get_thread_ident() != self->thread && !self->ring->dead;
    if (!gt_proactor_check_idle(self) || (!elsewhere && !gt_proactor_check_thread(self)))
        return NULL;
    discard_completions(self);
    gt_waiter *waiter;
    while ((waiter = gt_proactor_pop_ready(self)))
        Py_DECREF(waiter);
    gt_waiters_drop_spare(self);
    if (elsewhere) {
        uint64_t left = abandon_run(self);
        close_descriptors(self);
        return PyLong_FromUnsignedLongLong(left);
    }
    detach_streams(self);
    gt_sockets_detach(self);
    uint64_t in_flight = 0;
    /* A full submission queue can keep streams on the list, so preparing and draining take turns, a bounded number. */
    for (int round = 0; round < 64; round++) {
        gt_proactor_prepare(self);
        gt_sockets_prepare(self);
        in_flight = gt_ring_drain(self->ring, CLOSE_PATIENCE_NS, complete_while_closing, self);
        if (in_flight > 0 || (!self->wanting_first && !self->wanting_sockets))
            break;
    }
    self->closed = true;
    free_memory(self, in_flight);
    close_descriptors(self);
    return PyLong_FromUnsignedLongLong(in_flight);
}

/* In the child of a fork: everything belongs to the parent, nothing is in flight here. */
static PyObject *proactor_forget(gt_proactor *self, PyObject *Py_UNUSED(ignored))
{
    if (!self->closed && self->ring) {
        gt_ring_forget(self->ring);
        for (gt_stream *stream = self->streams; stream; stream = stream->next)
            if (stream->connection)
                stream->connection->closed = true;
        gt_sockets_forget(self);
        close_descriptors(self); /* copies: a write would wake the parent */
    }
    Py_RETURN_NONE;
}

static int proactor_traverse(gt_proactor *self, visitproc visit, void *arg)
{
    Py_VISIT(self->ring_owner);
    Py_VISIT(self->completions);
    Py_VISIT(self->failure);
    Py_VISIT(self->make_broken);
    Py_VISIT(self->closed_error);
    Py_VISIT(self->busy_error);
    Py_VISIT(self->too_slow_error);
    for (gt_call *poll = self->polls; poll; poll = poll->poll.next)
        Py_VISIT(poll);
    return gt_trio_traverse(&self->trio, visit, arg);
}

static int proactor_clear(gt_proactor *self)
{
    gt_trio_unbind(&self->trio); /* what else there is is in no cycle */
    Py_CLEAR(self->failure);
    while (self->polls)
        gt_poll_cancel(self->polls);
    gt_waiters_drop_spare(self);
    return 0;
}

static void proactor_dealloc(gt_proactor *self)
{
    PyObject_GC_UnTrack(self);
    /* Unclosed, its streams stay: only close() may give back memory that the kernel knows. */
    if (self->ring)
        close_descriptors(self);
    proactor_clear(self);
    gt_trio_free(&self->trio);
    Py_CLEAR(self->make_broken);
    Py_CLEAR(self->closed_error);
    Py_CLEAR(self->busy_error);
    Py_CLEAR(self->too_slow_error);
    Py_CLEAR(self->completions);
    Py_CLEAR(self->ring_owner);
    PyMem_Free(self->batch);
    gt_spares_limit(&self->spares, 0);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* --- attributes --- */

#define COUNTER(NAME, EXPRESSION)                                                                                      \
    static PyObject *get_##NAME(gt_proactor *self, void *Py_UNUSED(closure))                                           \
    {                                                                                                                  \
        return PyLong_FromUnsignedLongLong((unsigned long long)(EXPRESSION));                                          \
    }
COUNTER(connections, self->stream_count)
COUNTER(closing, self->closing_count)
COUNTER(endpoints, self->socket_count)
COUNTER(starvations, self->starvations)
COUNTER(uncopied_pieces, self->bytes_buffers.taken)
COUNTER(resumed_in_place, self->resumed_in_place)
COUNTER(rescheduled, self->rescheduled)
#undef COUNTER

static PyObject *get_wakeup_descriptor(gt_proactor *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(self->ring ? self->wakeup_descriptor : -1);
}

static PyObject *get_has_unsubmitted(gt_proactor *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->ring && (gt_proactor_is_held_up(self) || gt_ring_unsubmitted(self->ring) > 0));
}

static PyObject *get_thread(gt_proactor *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(self->thread);
}

static PyGetSetDef proactor_getset[] = {
    {"connections", (getter)get_connections, NULL, PyDoc_STR("Connections that are open or closing."), NULL},
    {"closing", (getter)get_closing, NULL, PyDoc_STR("Connections that were closed and the kernel has yet to let go."),
     NULL},
    {"endpoints", (getter)get_endpoints, NULL, PyDoc_STR("Datagram endpoints that are open or closing."), NULL},
    {"starvations", (getter)get_starvations, NULL, PyDoc_STR("Receives ended because no buffer was free."), NULL},
    {"uncopied_pieces", (getter)get_uncopied_pieces, NULL,
     PyDoc_STR("Pieces that were received into a bytes object and handed out as it."), NULL},
    {"resumed_in_place", (getter)get_resumed_in_place, NULL, PyDoc_STR("Tasks resumed in place."), NULL},
    {"rescheduled", (getter)get_rescheduled, NULL, PyDoc_STR("Tasks woken through Trio's scheduler."), NULL},
    {"wakeup_descriptor", (getter)get_wakeup_descriptor, NULL,
     PyDoc_STR("An eventfd that ends the wait when it is written to; -1 once the proactor is closed."), NULL},
    {"has_unsubmitted", (getter)get_has_unsubmitted, NULL,
     PyDoc_STR("Whether something is wanted that the kernel has not taken."), NULL},
    {"thread", (getter)get_thread, NULL, PyDoc_STR("The identifier of the thread of the run."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef proactor_methods[] = {
    {"bind", (PyCFunction)proactor_bind, METH_O,
     PyDoc_STR("bind($self, seam, /)\n--\n\nTake what belongs to the run from the attributes of seam.")},
    {"count_completions", (PyCFunction)proactor_count_completions, METH_NOARGS,
     PyDoc_STR("count_completions($self, /)\n--\n\nAn eventfd for the ring to count completions on.")},
    {"poll", (PyCFunction)(void (*)(void))proactor_poll, METH_FASTCALL,
     PyDoc_STR(
         "poll($self, table, fd, events, is_socket, /)\n--\n\nAn awaitable: wait until the descriptor is ready.")},
    {"wait", (PyCFunction)gt_proactor_wait, METH_O,
     PyDoc_STR("wait($self, timeout, /)\n--\n\nSubmit, wait at most timeout seconds, reap: how much news there is.")},
    {"process", (PyCFunction)gt_proactor_process, METH_NOARGS,
     PyDoc_STR("process($self, /)\n--\n\nResume tasks: the completions of single operations, or None.")},
    {"settle", (PyCFunction)proactor_settle, METH_NOARGS,
     PyDoc_STR("settle($self, /)\n--\n\nHave the kernel let go of the files of waits that were ended.")},
    {"close", (PyCFunction)proactor_close, METH_NOARGS,
     PyDoc_STR("close($self, /)\n--\n\nEnd everything: how many operations could not be ended.")},
    {"forget", (PyCFunction)proactor_forget, METH_NOARGS,
     PyDoc_STR("forget($self, /)\n--\n\nIn the child of a fork: let go of the parent's ring.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef proactor_members[] = {
    {"slice_ns", T_LONGLONG, offsetof(gt_proactor, slice_ns), 0,
     PyDoc_STR("Nanoseconds that a task answers from memory before others have their turn.")},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject gt_proactor_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._fastpath.Proactor",
    .tp_basicsize = sizeof(gt_proactor),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = PyDoc_STR("The connections of one run, on its ring."),
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)proactor_init,
    .tp_dealloc = (destructor)proactor_dealloc,
    .tp_traverse = (traverseproc)proactor_traverse,
    .tp_clear = (inquiry)proactor_clear,
    .tp_methods = proactor_methods,
    .tp_getset = proactor_getset,
    .tp_members = proactor_members,
};
