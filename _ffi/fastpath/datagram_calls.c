/* datagram_calls.c: the calls of a datagram endpoint, as rows of the engine's table (call.h).
 *
 * They differ from the calls of a connection in that any number of tasks may receive and send at the same time:
 * wait_queue.c.
 *
 * A task can go on without the scheduler for about a millisecond ("time slices" in worklists.c); and while sending, for no more
 * datagrams than gt_endpoint_has_room() allows.
 */
#include "endpoint.h"

static gt_endpoint *endpoint_of(const gt_call *self) { return (gt_endpoint *)self->owner; }

static gt_wait_queue *queue_of(const gt_call *self)
{
    return self->kind->sends ? &endpoint_of(self)->sending : &endpoint_of(self)->receiving;
}

/* The socket reports its error once. */
static int raise_socket_error(gt_endpoint *endpoint)
{
    int error = endpoint->socket_error;
    endpoint->socket_error = 0;
    gt_socket_want(endpoint->socket); /* to receive again */
    return gt_raise_os_error(error);
}

static int refuse(const gt_call *self) { return endpoint_of(self)->closed ? gt_call_raise_closed(self) : 0; }

/* The task runs, so it leaves the queue.  -1 with an exception when the endpoint is closed. */
static int begin_answer(gt_call *self)
{
    const gt_endpoint *endpoint = endpoint_of(self);
    gt_wait_queue_leave(self);
    return endpoint->closed || !endpoint->socket || endpoint->socket->closing ? gt_call_raise_closed(self) : 0;
}

static bool has_datagram(const gt_call *self)
{
    return self->datagram.notified || endpoint_of(self)->inbound.count > 0;
}

static int answer_receive(gt_call *self, PyObject **result)
{
    gt_endpoint *endpoint = endpoint_of(self);
    if (begin_answer(self) < 0)
        return -1;
    if (endpoint->inbound.count == 0)
        return endpoint->socket_error ? raise_socket_error(endpoint) : 0;
    *result = PyTuple_New(2); /* may collect garbage, and so run anything */
    if (!*result)
        return -1;
    if (endpoint->inbound.count == 0) {
        Py_CLEAR(*result);
        return refuse(self);
    }
    gt_datagram datagram = gt_datagrams_pop(&endpoint->inbound);
    endpoint->peers.latest = datagram.place;
    PyTuple_SET_ITEM(*result, 0, datagram.data);
    PyTuple_SET_ITEM(*result, 1, datagram.address);
    return 1;
}

static bool is_notified(const gt_call *self) { return self->datagram.notified; }

static int answer_send(gt_call *self, PyObject **result)
{
    gt_endpoint *endpoint = endpoint_of(self);
    if (begin_answer(self) < 0)
        return -1;
    bool is_behind = self->state != GT_CALL_PARKED && (endpoint->sending.first || endpoint->sending.notified);
    if (!is_behind && endpoint->socket_error && endpoint->remote)
        return raise_socket_error(endpoint);
    if (is_behind || !gt_endpoint_has_room(endpoint)) {
        gt_socket_want(endpoint->socket);
        return 0;
    }
    bool at_once = gt_endpoint_sends_at_once(self);
    gt_datagram *datagram = gt_datagrams_push(&endpoint->outbound, self->data);
    if (!datagram) {
        PyErr_NoMemory();
        return -1;
    }
    datagram->to = self->datagram.to;
    endpoint->sent_in_slice++;
    gt_socket_want(endpoint->socket);
    if (at_once && !endpoint->socket->poll.armed) {
        int error = gt_endpoint_flush(endpoint);
        if (error)
            return gt_raise_os_error(error);
        if (endpoint->outbound.count == 0 && !gt_endpoint_set_reached(endpoint, &self->datagram.to, true))
            return -1;
    }
    *result = Py_NewRef(Py_None);
    return 1;
}

static int park(gt_call *self, bool cancelled)
{
    if (endpoint_of(self)->closed)
        return gt_call_raise_closed(self);
    gt_wait_queue_leave(self);
    if (!cancelled)
        gt_wait_queue_join(queue_of(self), self);
    return 0;
}

/* Notify the next call in the queue: of the datagram of this one, or because this one has sent. */
static void leave(gt_call *self)
{
    gt_endpoint *endpoint = endpoint_of(self);
    gt_wait_queue_leave(self);
    if (!endpoint->closed)
        gt_endpoint_notify(endpoint);
}

#define EVERY(NAME)                                                                                                    \
    .name = "DatagramEndpoint." NAME, .owner = "endpoint", .in_place = true, .refuse = refuse, .park = park,           \
    .stopped = leave, .end = leave

const gt_kind gt_datagram_kinds[] = {
    [GT_DATAGRAM_RECEIVE] = {EVERY("receive"), .is_satisfied = has_datagram, .answer = answer_receive},
    [GT_DATAGRAM_NEXT] = {EVERY("__anext__"), .is_satisfied = has_datagram, .answer = answer_receive},
    [GT_DATAGRAM_SEND] = {EVERY("send"), .is_satisfied = is_notified, .answer = answer_send, .sends = true},
};
