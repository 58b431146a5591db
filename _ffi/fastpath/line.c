/* line.c: the calls of an endpoint that wait, in line.
 *
 * A datagram is a whole, so any number of tasks may receive and send on one endpoint, and those that wait stand in line.  When
 * there is something for the first one, it leaves the line (`notified`) and joins the reactor's list of tasks to resume.  What
 * it was notified of is counted, so that no more calls are notified than there are datagrams.  When it is cancelled instead,
 * the next one in line is notified.
 */
#include "endpoint.h"

void gt_line_leave(gt_call *call)
{
    gt_line *line = call->datagram.line;
    if (call->datagram.notified) {
        call->datagram.notified = false;
        line->notified--;
    }
    if (!call->datagram.listed)
        return;
    call->datagram.listed = false;
    if (call->datagram.previous)
        call->datagram.previous->datagram.next = call->datagram.next;
    else
        line->first = call->datagram.next;
    if (call->datagram.next)
        call->datagram.next->datagram.previous = call->datagram.previous;
    else
        line->last = call->datagram.previous;
}

void gt_line_join(gt_line *line, gt_call *call)
{
    call->datagram.line = line;
    call->datagram.listed = true;
    call->datagram.next = NULL;
    call->datagram.previous = line->last;
    if (line->last)
        line->last->datagram.next = call;
    else
        line->first = call;
    line->last = call;
}

static void notify_first(gt_line *line)
{
    gt_call *call = line->first;
    gt_line_leave(call);
    call->datagram.notified = true;
    line->notified++;
    gt_reactor_ready(call->reactor, call->waiter);
}

void gt_endpoint_notify(gt_endpoint *endpoint)
{
    gt_line *receiving = &endpoint->receiving, *sending = &endpoint->sending;
    while (receiving->first && receiving->notified < endpoint->inbound.count + (endpoint->socket_error != 0))
        notify_first(receiving);
    /* With one of them at a time the line is as fair as can be: the next is notified when this one has sent. */
    if (sending->first && sending->notified == 0 && gt_endpoint_has_room(endpoint))
        notify_first(sending);
}

int gt_line_wake_all(gt_line *line)
{
    PyObject *type = NULL, *value = NULL, *traceback = NULL;
    while (line->first) {
        gt_call *call = line->first;
        gt_line_leave(call);
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
