/* wait_queue.c: the calls of an endpoint that wait, first in, first out.
 *
 * A datagram is a whole, so any number of tasks may receive and send on one endpoint, and those that wait are queued.  When
 * there is something for the first one, it leaves the queue (`notified`) and joins the proactor's list of tasks to resume.  The
 * queue counts the notified calls, so that no more calls are notified than there are datagrams.  When a notified call is
 * cancelled, the next one in the queue is notified.
 */
#include "endpoint.h"

void gt_wait_queue_leave(gt_call *call)
{
    gt_wait_queue *queue = call->datagram.queue;
    if (call->datagram.notified) {
        call->datagram.notified = false;
        queue->notified--;
    }
    if (!call->datagram.listed)
        return;
    call->datagram.listed = false;
    if (call->datagram.previous)
        call->datagram.previous->datagram.next = call->datagram.next;
    else
        queue->first = call->datagram.next;
    if (call->datagram.next)
        call->datagram.next->datagram.previous = call->datagram.previous;
    else
        queue->last = call->datagram.previous;
}

void gt_wait_queue_join(gt_wait_queue *queue, gt_call *call)
{
    call->datagram.queue = queue;
    call->datagram.listed = true;
    call->datagram.next = NULL;
    call->datagram.previous = queue->last;
    if (queue->last)
        queue->last->datagram.next = call;
    else
        queue->first = call;
    queue->last = call;
}

static void notify_first(gt_wait_queue *queue)
{
    gt_call *call = queue->first;
    gt_wait_queue_leave(call);
    call->datagram.notified = true;
    queue->notified++;
    gt_proactor_ready(call->proactor, call->waiter);
}

void gt_endpoint_notify(gt_endpoint *endpoint)
{
    gt_wait_queue *receiving = &endpoint->receiving, *sending = &endpoint->sending;
    while (receiving->first && receiving->notified < endpoint->inbound.count + (endpoint->socket_error != 0))
        notify_first(receiving);
    /* One of them at a time keeps their order: the next is notified when this one has sent. */
    if (sending->first && sending->notified == 0 && gt_endpoint_has_room(endpoint))
        notify_first(sending);
}

int gt_wait_queue_wake_all(gt_wait_queue *queue)
{
    PyObject *type = NULL, *value = NULL, *traceback = NULL;
    while (queue->first) {
        gt_call *call = queue->first;
        gt_wait_queue_leave(call);
        if (gt_waiter_wake(call->waiter, false) == 0)
            continue;
        if (type)
            PyErr_Clear();
        else
            PyErr_Fetch(&type, &value, &traceback);
    }
    PyErr_Restore(type, value, traceback);
    return type ? -1 : 0;
}
