/* exchange.c: what `await endpoint.receive()` and `await endpoint.send()` await.
 *
 * The same as awaitable.c is to a connection, with the same rules (answers from memory do not go through the scheduler,
 * the datagram is in the queue and not in the message that wakes the task, so nothing is lost in between) and one
 * difference: a datagram is a whole, so any number of tasks may receive and send on one endpoint, and those that wait
 * stand in line.
 *
 *     NEW ──drive──> DONE                        answered at once
 *      ├────drive──> YIELDED ──drive──> DONE     the same, after a turn of the scheduler
 *      └────drive──> PARKED ──drive──> DONE      the usual wait
 *                     └──drive──> PARKED         woken, but somebody else was faster: wait again
 *                     └──throw/close──> DONE
 *
 * A parked task is in the endpoint's line; when there is something for it, it is taken off the line (`notified`) and
 * put on the reactor's list of tasks to resume.  What it was notified of is counted, so that no more are notified than
 * there are datagrams.  When it is cancelled instead, the next one in line is notified.
 *
 * How long a task can go on without the scheduler: about a millisecond ("turns" in agenda.c); and while sending, for no more
 * datagrams than gt_endpoint_has_room() allows.
 */
#include "endpoint.h"

#include <errno.h>
#include <string.h>

enum { NEW, YIELDED, PARKED, DONE };

#define FREE_LIST_SIZE 256
static gt_exchange *free_list[FREE_LIST_SIZE];
static int free_count;

/* --- waiters --- */

static void unlist(gt_waiter *waiter)
{
    gt_waiters *list = waiter->list;
    if (waiter->notified) {
        waiter->notified = false;
        list->notified--;
    }
    if (!waiter->listed)
        return;
    waiter->listed = false;
    if (waiter->previous)
        waiter->previous->next = waiter->next;
    else
        list->first = waiter->next;
    if (waiter->next)
        waiter->next->previous = waiter->previous;
    else
        list->last = waiter->previous;
}

static void enlist(gt_waiter *waiter)
{
    gt_waiters *list = waiter->list;
    waiter->listed = true;
    waiter->next = NULL;
    waiter->previous = list->last;
    if (list->last)
        list->last->next = waiter;
    else
        list->first = waiter;
    list->last = waiter;
}

/* Take the first waiter off the line and have its task resumed. */
static void notify_first(gt_reactor *reactor, gt_waiters *list)
{
    gt_waiter *waiter = list->first;
    unlist(waiter);
    waiter->notified = true;
    list->notified++;
    gt_reactor_ready(reactor, &waiter->ready, (PyObject *)waiter);
}

void gt_endpoint_notify(gt_endpoint *endpoint)
{
    gt_waiters *receiving = &endpoint->receiving, *sending = &endpoint->sending;
    while (receiving->first && receiving->notified < endpoint->inbound.count + (endpoint->socket_error != 0))
        notify_first(endpoint->reactor, receiving);
    /* With one of them at a time the line is as fair as can be: the next is notified when this one has sent. */
    if (sending->first && sending->notified == 0 && gt_endpoint_has_room(endpoint))
        notify_first(endpoint->reactor, sending);
}

int gt_waiter_wake(gt_waiter *waiter, bool in_place)
{
    PyObject *task = waiter->task;
    if (!task)
        return 0;
    waiter->task = NULL;
    int result = 0;
    if (!waiter->endpoint->reactor->closed) /* else there is no run left to wake the task in */
        result = gt_reactor_wake(waiter->endpoint->reactor, task, (PyObject *)waiter, in_place);
    Py_DECREF(task);
    return result;
}

/* All of them, and then the first thing that went wrong: Trio's code is called, and it can be interrupted. */
int gt_waiters_wake_all(gt_waiters *waiters)
{
    PyObject *type = NULL, *value = NULL, *traceback = NULL;
    while (waiters->first) {
        gt_waiter *waiter = waiters->first;
        unlist(waiter);
        if (gt_waiter_wake(waiter, false) == 0)
            continue;
        if (type)
            PyErr_Clear();
        else
            PyErr_Fetch(&type, &value, &traceback);
    }
    PyErr_Restore(type, value, traceback);
    return type ? -1 : 0;
}

static PyObject *waiter_abort(gt_waiter *self, PyObject *args, PyObject *kwargs)
{
    PyObject *raise_cancel;
    static char *names[] = {"raise_cancel", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:abort", names, &raise_cancel))
        return NULL;
    if (self->endpoint) {
        Py_CLEAR(self->task);
        unlist(self);
        gt_endpoint_notify(self->endpoint); /* of what this one was notified of */
    }
    return Py_NewRef(self->succeeded);
}

static gt_waiter *take_waiter(gt_endpoint *endpoint, gt_waiters *list)
{
    gt_waiter *waiter = endpoint->spare;
    if (waiter) {
        endpoint->spare = NULL;
    } else {
        gt_trio *trio = &endpoint->reactor->trio;
        waiter = PyObject_GC_New(gt_waiter, &gt_waiter_type);
        if (!waiter)
            return NULL;
        memset((char *)waiter + sizeof(PyObject), 0, sizeof *waiter - sizeof(PyObject));
        waiter->succeeded = Py_NewRef(trio->abort_succeeded);
        PyObject_GC_Track(waiter);
        waiter->trap = PyObject_CallOneArg(trio->trap_type, (PyObject *)waiter);
        if (!waiter->trap) {
            Py_DECREF(waiter);
            return NULL;
        }
    }
    waiter->endpoint = endpoint;
    waiter->list = list;
    return waiter;
}

/* Takes the caller's reference. */
void gt_waiter_drop(gt_waiter *waiter)
{
    Py_CLEAR(waiter->trap);
    Py_DECREF(waiter);
}

static void give_back(gt_endpoint *endpoint, gt_waiter *waiter)
{
    unlist(waiter);
    waiter->endpoint = NULL;
    waiter->list = NULL;
    PyObject *task = waiter->task;
    waiter->task = NULL;
    if (!endpoint->spare && !endpoint->closed && !waiter->ready.object)
        endpoint->spare = waiter;
    else
        gt_waiter_drop(waiter);
    Py_XDECREF(task);
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
    .tp_doc = PyDoc_STR("A task that waits for an endpoint; Trio calls this to cancel its wait."),
    .tp_dealloc = (destructor)waiter_dealloc,
    .tp_traverse = (traverseproc)waiter_traverse,
    .tp_clear = (inquiry)waiter_clear,
    .tp_call = (ternaryfunc)waiter_abort,
};

/* --- calls --- */

gt_exchange *gt_exchange_new(gt_endpoint *endpoint)
{
    gt_exchange *self;
    if (free_count > 0) {
        self = free_list[--free_count];
        PyObject_Init((PyObject *)self, &gt_exchange_type);
    } else {
        self = PyObject_GC_New(gt_exchange, &gt_exchange_type);
        if (!self)
            return NULL;
    }
    Py_INCREF(endpoint);
    self->endpoint = endpoint;
    self->waiter = NULL;
    self->data = NULL;
    self->to_reached = self->iterates = self->is_finalized = false;
    self->state = NEW;
    PyObject_GC_Track(self);
    return self;
}

/* The call is over, however it ended. */
static void finish(gt_exchange *self)
{
    self->state = DONE;
    gt_waiter *waiter = self->waiter;
    self->waiter = NULL;
    if (waiter)
        give_back(self->endpoint, waiter);
    Py_CLEAR(self->data);
}

static int raise_closed(const gt_exchange *self, const char *message)
{
    PyErr_SetString(self->endpoint->reactor->closed_error, message);
    return -1;
}

static int raise_os_error(int error)
{
    errno = error;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

/* The error that the socket has told of, once. */
static int raise_socket_error(gt_endpoint *endpoint)
{
    int error = endpoint->socket_error;
    endpoint->socket_error = 0;
    gt_socket_want(endpoint->socket); /* to receive again */
    return raise_os_error(error);
}

/* --- answering: 1 with *result set, 0 when the task has to wait, -1 with an exception --- */

static int answer_receive(gt_exchange *self, PyObject **result)
{
    gt_endpoint *endpoint = self->endpoint;
    if (endpoint->inbound.count > 0) {
        *result = PyTuple_New(2); /* may collect garbage, and so run anything */
        if (!*result)
            return -1;
        if (endpoint->inbound.count == 0) {
            Py_CLEAR(*result);
            return endpoint->closed ? raise_closed(self, "this endpoint was closed") : 0;
        }
        gt_datagram datagram = gt_datagrams_pop(&endpoint->inbound);
        PyTuple_SET_ITEM(*result, 0, datagram.data);
        PyTuple_SET_ITEM(*result, 1, datagram.address);
        return 1;
    }
    return endpoint->socket_error ? raise_socket_error(endpoint) : 0;
}

static int answer_send(gt_exchange *self, PyObject **result)
{
    gt_endpoint *endpoint = self->endpoint;
    if (endpoint->socket_error && endpoint->remote)
        return raise_socket_error(endpoint);
    if (!gt_endpoint_has_room(endpoint)) {
        gt_socket_want(endpoint->socket);
        return 0;
    }
    bool at_once = gt_endpoint_sends_at_once(self);
    gt_datagram *datagram = gt_datagrams_push(&endpoint->outbound, self->data);
    if (!datagram) {
        PyErr_NoMemory();
        return -1;
    }
    datagram->to = self->to;
    endpoint->turn++;
    gt_socket_want(endpoint->socket);
    if (at_once && !endpoint->socket->poll_armed) {
        int error = gt_endpoint_flush(endpoint);
        if (error)
            return raise_os_error(error);
        if (endpoint->outbound.count == 0 && !gt_endpoint_set_reached(endpoint, &self->to, true))
            return -1;
    }
    *result = Py_NewRef(Py_None);
    return 1;
}

static int answer(gt_exchange *self, PyObject **result)
{
    gt_endpoint *endpoint = self->endpoint;
    if (endpoint->closed || !endpoint->socket || endpoint->socket->closing)
        return raise_closed(self, "this endpoint was closed");
    return self->data ? answer_send(self, result) : answer_receive(self, result);
}

/* --- driving --- */

/* `in_line`: to be notified; else it is for Trio to cancel at once. */
static PySendResult park(gt_exchange *self, PyObject *task, bool in_line, PyObject **result)
{
    gt_endpoint *endpoint = self->endpoint;
    if (!self->waiter) {
        gt_waiter *waiter = take_waiter(endpoint, self->data ? &endpoint->sending : &endpoint->receiving);
        if (!waiter)
            return PYGEN_ERROR;
        self->waiter = waiter;
        if (endpoint->closed) { /* by what ran while the waiter was made: nobody would wake this task */
            raise_closed(self, "this endpoint was closed");
            return PYGEN_ERROR;
        }
    }
    Py_XSETREF(self->waiter->task, Py_NewRef(task));
    if (in_line && !self->waiter->listed)
        enlist(self->waiter);
    gt_reactor_begin_turn(endpoint->reactor);
    self->state = PARKED;
    *result = Py_NewRef(self->waiter->trap);
    return PYGEN_NEXT;
}

static PySendResult try_to_answer(gt_exchange *self, PyObject *task, PyObject **result)
{
    bool is_new = self->state == NEW || self->state == YIELDED;
    /* Counted first, because that can fail, and then no datagram may have been moved. */
    bool answers = self->data || self->endpoint->inbound.count > 0;
    if (is_new && answers && gt_trio_count_cancel_point(&self->endpoint->reactor->trio, task) < 0)
        return PYGEN_ERROR;
    int answered = answer(self, result);
    if (answered == 0)
        return park(self, task, true, result);
    return answered > 0 ? PYGEN_RETURN : PYGEN_ERROR;
}

static PySendResult start(gt_exchange *self, PyObject *task, PyObject **result)
{
    gt_endpoint *endpoint = self->endpoint;
    if (endpoint->closed) {
        raise_closed(self, "this endpoint was closed");
        return PYGEN_ERROR;
    }
    int cancelled = gt_trio_cancel_is_pending(&endpoint->reactor->trio, task);
    if (cancelled < 0)
        return PYGEN_ERROR;
    if (cancelled) /* nothing has been done yet; parking lets Trio deliver it */
        return park(self, task, false, result);
    if (self->state == NEW && gt_reactor_turn_is_over(endpoint->reactor)) {
        self->state = YIELDED;
        *result = Py_NewRef(endpoint->reactor->trio.checkpoint);
        return PYGEN_NEXT;
    }
    if (self->data && (endpoint->sending.first || endpoint->sending.notified)) {
        gt_socket_want(endpoint->socket);
        return park(self, task, true, result); /* behind those that came before */
    }
    return try_to_answer(self, task, result);
}

static PySendResult resume(gt_exchange *self, PyObject *task, PyObject *message, PyObject **result)
{
    if (self->waiter)
        unlist(self->waiter);
    /* `woken` is one object for all wake-ups, and an Outcome can be unwrapped once. */
    if (message != Py_None && message != self->endpoint->reactor->trio.woken) {
        PyObject *value = PyObject_CallMethod(message, "unwrap", NULL);
        if (!value)
            return PYGEN_ERROR;
        Py_DECREF(value);
        if (self->state == DONE) { /* unwrap() is somebody's code, and may have ended the call */
            PyErr_SetString(PyExc_RuntimeError, "this receive() or send() was ended while it was resumed");
            return PYGEN_ERROR;
        }
    }
    return self->state == YIELDED ? start(self, task, result) : try_to_answer(self, task, result);
}

/* It was awaited, and fails before it begins. */
static PySendResult end_unstarted(gt_exchange *self)
{
    if (self->state == NEW) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        finish(self);
        PyErr_Restore(type, value, traceback);
    }
    return PYGEN_ERROR;
}

static PySendResult drive(PyObject *object, PyObject *message, PyObject **result)
{
    gt_exchange *self = (gt_exchange *)object;
    gt_reactor *reactor = self->endpoint->reactor;
    *result = NULL;
    if (self->state == DONE) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse an awaited receive() or send(): call it again");
        return PYGEN_ERROR;
    }
    if (reactor->closed) { /* the run is over, and there is no telling what it knew of tasks */
        raise_closed(self, "this endpoint was closed at the end of its run");
        return end_unstarted(self);
    }
    if (!gt_reactor_check_thread(reactor))
        return end_unstarted(self);
    if (self->state == PARKED && message == Py_None && self->waiter->task) { /* whoever wakes it takes the task first */
        PyErr_SetString(PyExc_RuntimeError, "this receive() or send() is being awaited by another task already");
        return end_unstarted(self);
    }
    PyObject *task = gt_trio_current_task(&reactor->trio);
    if (!task)
        return end_unstarted(self);
    PySendResult sent = self->state == NEW ? start(self, task, result) : resume(self, task, message, result);
    if (sent == PYGEN_NEXT)
        return sent;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    gt_endpoint *endpoint = (gt_endpoint *)Py_NewRef(self->endpoint);
    finish(self);
    if (!endpoint->closed)
        gt_endpoint_notify(endpoint); /* the next sender in line */
    Py_DECREF(endpoint);
    PyErr_Restore(type, value, traceback);
    return sent;
}

static PyObject *exchange_send(PyObject *self, PyObject *message) { return gt_drive_by_method(drive, self, message); }

static PyObject *exchange_next(PyObject *self) { return gt_drive_by_method(drive, self, Py_None); }

static PyObject *exchange_self(PyObject *self) { return Py_NewRef(self); }

static PyObject *exchange_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    finish((gt_exchange *)self);
    Py_RETURN_NONE;
}

static PyObject *exchange_throw(PyObject *self, PyObject *args)
{
    finish((gt_exchange *)self);
    return gt_raise_thrown(args);
}

static int exchange_traverse(gt_exchange *self, visitproc visit, void *arg)
{
    Py_VISIT(self->endpoint);
    Py_VISIT(self->waiter);
    Py_VISIT(self->data);
    return 0;
}

/* The garbage collector calls it of one in a cycle, whatever has become of it. */
static void exchange_finalize(gt_exchange *self)
{
    self->is_finalized = true;
    if (self->state == NEW)
        gt_warn_never_awaited((PyObject *)self, self->data       ? "DatagramEndpoint.send"
                                                : self->iterates ? "DatagramEndpoint.__anext__"
                                                                 : "DatagramEndpoint.receive");
}

void gt_exchange_withdraw(gt_exchange *self)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    finish(self);
    Py_DECREF(self);
    PyErr_Restore(type, value, traceback);
}

static void exchange_dealloc(gt_exchange *self)
{
    if (self->state == NEW && PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0)
        return; /* a hook for warnings has kept it */
    PyObject_GC_UnTrack(self);
    if (self->endpoint)
        finish(self);
    Py_CLEAR(self->endpoint);
    if (free_count < FREE_LIST_SIZE && !self->is_finalized) /* Python finalizes an object once */
        free_list[free_count++] = self;
    else
        PyObject_GC_Del(self);
}

static PyMethodDef exchange_methods[] = {
    {"send", exchange_send, METH_O, PyDoc_STR("Resume with a message from Trio.")},
    {"throw", exchange_throw, METH_VARARGS, PyDoc_STR("End the call with an exception.")},
    {"close", exchange_close, METH_NOARGS, PyDoc_STR("End the call.")},
    {NULL, NULL, 0, NULL},
};

static PyAsyncMethods exchange_async = {
    .am_await = exchange_self,
    .am_send = drive,
};

PyTypeObject gt_exchange_type = {
    PyVarObject_HEAD_INIT(NULL, 0) /* the macro brings the comma */
        .tp_name = "gain_trio._fastpath.Exchange",
    .tp_basicsize = sizeof(gt_exchange),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = PyDoc_STR("A call in progress on an endpoint."),
    .tp_dealloc = (destructor)exchange_dealloc,
    .tp_finalize = (destructor)exchange_finalize,
    .tp_traverse = (traverseproc)exchange_traverse,
    .tp_as_async = &exchange_async,
    .tp_iter = exchange_self,
    .tp_iternext = exchange_next,
    .tp_methods = exchange_methods,
};
