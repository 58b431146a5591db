/* socket.c: a datagram endpoint as the kernel sees it.
 *
 * Receiving is one multishot RECVMSG for as long as the endpoint lives, into buffers of a group of their own, each with
 * room for the largest datagram there is.  Connections receive into buffers that are used up bit by bit; there a
 * datagram would be cut off where its buffer ends.  The program always reads, and keeps a bounded queue: what comes
 * when it is full is dropped and counted.  So the oldest datagrams are kept, as in the kernel's own queue, but many
 * more than that has room for: the kernel counts several hundred bytes for the smallest one.
 *
 * Sending is sendmmsg(2), not an operation on the ring.  Operations of one socket may overtake each other as soon as
 * one of them finds no room; each costs a completion; and their data has to stay until then.  One call sends a whole
 * batch in order, at less cost than as many operations, and does not need the memory when it has returned.  Only a
 * socket without room needs the ring: a POLL_ADD completes when there is some.
 *
 * When it is sent:
 *
 *     at once, in send(), with all that was queued before    the first datagram to an address, or after a failure; a large
 *                                                            one.  send() raises what the kernel says to it.
 *     before the run waits next, in one batch with others    a small one to an address that datagrams have gone to
 *
 * In the second case the kernel has next to no reason left to refuse (a route has gone, a firewall has changed).  If it
 * does, send() has returned already, and raising the error in the next one would blame an innocent datagram: it is
 * counted, and the next datagram to that address is tried at once again.
 *
 * A connected socket also reports errors that came back from the network (ECONNREFUSED: no socket listens there).  They are
 * about some datagram sent before, the next call of the socket returns them, and the socket goes on.  Such an error ends the
 * receive; it is armed again when the program has the error, so that an error that stays does not make it spin.
 *
 *     in flight            prepared when                               ended by
 *     ------------------   -----------------------------------------   --------------------------------------------------
 *     receive, multishot   open, no error that is unreported           error, ENOBUFS, a datagram of no bytes, its cancel
 *     poll for writing     open, datagrams left unsent                 its CQE
 *     cancel of either     closing                                     its own CQE
 *     close                closing                                     its CQE; the last one frees the socket
 */
#include "endpoint.h"

#include <errno.h>
#include <poll.h>
#include <unistd.h>

#define BUFFER_GROUP 1
#define LARGEST_PAYLOAD 65535U
#define BATCH 64   /* datagrams a sendmmsg() */
#define LARGE 1024 /* bytes: what is larger is sent at once; no network refuses less for its size */

/* Odd in cache lines: the beginnings of the buffers, which are what small datagrams use, spread over the cache. */
#define BUFFER_SIZE (1025U * 64U)
_Static_assert(sizeof(struct gt_received_message) + sizeof(struct sockaddr_in6) + LARGEST_PAYLOAD <= BUFFER_SIZE &&
                   (BUFFER_SIZE / 64U) % 2 == 1,
               "a buffer holds the largest datagram, its source and its header");

/* --- life --- */

static int open_buffers(gt_proactor *proactor, uint32_t count)
{
    if (proactor->datagram_buffers.memory)
        return 0;
    return gt_buffers_open_group(proactor->ring, &proactor->datagram_buffers, BUFFER_GROUP, count, BUFFER_SIZE, false);
}

static void set_os_error(int error, const char *message)
{
    PyObject *arguments = Py_BuildValue("(is)", error, message);
    if (arguments) {
        PyErr_SetObject(PyExc_OSError, arguments);
        Py_DECREF(arguments);
    }
}

gt_socket *gt_socket_open(gt_proactor *proactor, gt_endpoint *endpoint, int fd, int family, bool connected,
                          uint32_t buffers)
{
    if (!proactor->ring->buffers.memory) { /* as for a stream: see gt_stream_open() */
        PyErr_SetString(PyExc_RuntimeError, "this run's ring lacks what endpoints on the ring need");
        return NULL;
    }
    int result = open_buffers(proactor, buffers);
    if (result < 0) {
        set_os_error(-result, "the ring has no buffers for datagrams");
        return NULL;
    }
    gt_socket *socket = PyMem_Calloc(1, sizeof *socket);
    if (!socket) {
        PyErr_NoMemory();
        return NULL;
    }
    bool room = proactor->socket_count < proactor->ring->max_slots;
    socket->slot = room ? gt_slot_open(proactor->ring, GT_SLOT_SOCKET, socket) : GT_NO_SLOT;
    if (socket->slot == GT_NO_SLOT) {
        PyMem_Free(socket);
        set_os_error(ENOSPC, "the ring's table of endpoints is full (RingOptions.max_slots)");
        return NULL;
    }
    socket->proactor = proactor;
    socket->endpoint = endpoint;
    socket->fd = fd;
    socket->receive.tag = GT_TAG_DATAGRAM;
    socket->poll.tag = GT_TAG_SEND;
    socket->header.msg_namelen = connected ? 0 : gt_sockaddr_length(family); /* connected, all have the same source */
    socket->next = proactor->sockets;
    if (socket->next)
        socket->next->previous = socket;
    proactor->sockets = socket;
    proactor->socket_count++;
    gt_socket_want(socket);
    return socket;
}

static void destroy_socket(gt_socket *socket)
{
    gt_proactor *proactor = socket->proactor;
    if (socket->previous)
        socket->previous->next = socket->next;
    else
        proactor->sockets = socket->next;
    if (socket->next)
        socket->next->previous = socket->previous;
    proactor->socket_count--;
    if (socket->endpoint)
        socket->endpoint->socket = NULL;
    PyMem_Free(socket);
}

void gt_socket_want(gt_socket *socket)
{
    gt_proactor *proactor = socket->proactor;
    if (socket->wanting)
        return;
    socket->wanting = true;
    socket->next_wanting = NULL;
    if (proactor->wanting_sockets_last)
        proactor->wanting_sockets_last->next_wanting = socket;
    else
        proactor->wanting_sockets = socket;
    proactor->wanting_sockets_last = socket;
    gt_proactor_wake_guest(proactor);
}

void gt_socket_close(gt_socket *socket)
{
    if (socket->closing)
        return;
    socket->closing = true;
    gt_socket_want(socket);
}

/* --- sending --- */

bool gt_endpoint_sends_at_once(const gt_call *call)
{
    const gt_endpoint *endpoint = (const gt_endpoint *)call->owner;
    bool reached = endpoint->remote ? endpoint->remote_reached : call->datagram.to_reached;
    return !reached || PyBytes_GET_SIZE(call->data) > LARGE;
}

bool gt_endpoint_set_reached(gt_endpoint *endpoint, const gt_sockaddr *to, bool reached)
{
    if (endpoint->remote) {
        endpoint->remote_reached = reached;
        return true;
    }
    gt_peer *peer = reached ? gt_peers_get(&endpoint->peers, to) : gt_peers_find(&endpoint->peers, to);
    if (peer)
        peer->reached = reached;
    return peer || !reached;
}

static int send_batch(const gt_endpoint *endpoint, uint32_t count)
{
    struct mmsghdr messages[BATCH];
    struct iovec pieces[BATCH];
    memset(messages, 0, count * sizeof messages[0]);
    for (uint32_t i = 0; i < count; i++) {
        gt_datagram *datagram = gt_datagrams_at(&endpoint->outbound, i);
        pieces[i].iov_base = PyBytes_AS_STRING(datagram->data);
        pieces[i].iov_len = (size_t)PyBytes_GET_SIZE(datagram->data);
        messages[i].msg_hdr.msg_iov = &pieces[i];
        messages[i].msg_hdr.msg_iovlen = 1;
        if (!endpoint->remote) {
            messages[i].msg_hdr.msg_name = &datagram->to;
            messages[i].msg_hdr.msg_namelen = gt_sockaddr_length(endpoint->family);
        }
    }
    int sent;
    do {
        sent = sendmmsg(endpoint->socket->fd, messages, count, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : sent;
}

static void account_for_sent(gt_endpoint *endpoint, int count)
{
    for (int i = 0; i < count; i++) {
        gt_datagram datagram = gt_datagrams_pop(&endpoint->outbound);
        endpoint->sent++;
        endpoint->sent_bytes += (uint64_t)PyBytes_GET_SIZE(datagram.data);
        Py_DECREF(datagram.data);
    }
}

/* Send what the kernel accepts now.  The GIL is kept: a batch is a few dozen microseconds, and each call bounded. */
int gt_endpoint_flush(gt_endpoint *endpoint)
{
    bool reported = false; /* the socket reports its error once, so a second one is the datagram's own */
    while (endpoint->outbound.count > 0) {
        uint32_t count = endpoint->outbound.count < BATCH ? endpoint->outbound.count : BATCH;
        int sent = send_batch(endpoint, count);
        if (sent >= 0) {
            account_for_sent(endpoint, sent);
            reported = reported && sent == 0;
        } else if (sent == -EAGAIN) {
            return 0;
        } else if (endpoint->remote && !reported) {
            endpoint->socket_error = -sent;
            reported = true;
        } else {
            gt_datagram refused = gt_datagrams_pop(&endpoint->outbound);
            if (reported) /* it was the datagram's own the first time, too */
                endpoint->socket_error = 0;
            reported = false;
            endpoint->failed++;
            gt_endpoint_set_reached(endpoint, &refused.to, false);
            Py_DECREF(refused.data);
            if (endpoint->outbound.count == 0)
                return -sent;
        }
    }
    return 0;
}

/* --- state to SQEs --- */

/* True when the operation is not in flight, or its cancel is. */
static bool prepare_cancel(gt_socket *socket, gt_operation *operation)
{
    if (!operation->armed || operation->cancelled)
        return true;
    struct io_uring_sqe *sqe = gt_slot_sqe(socket->proactor->ring, socket->slot, GT_TAG_CANCEL);
    if (!sqe)
        return false;
    gt_prep_cancel(sqe, gt_key(socket->proactor->ring, socket->slot, operation->tag));
    operation->cancelled = true;
    return true;
}

static bool prepare_close(gt_socket *socket)
{
    if (!prepare_cancel(socket, &socket->receive) || !prepare_cancel(socket, &socket->poll))
        return false;
    if (socket->fd < 0)
        return true;
    struct io_uring_sqe *sqe = gt_slot_sqe(socket->proactor->ring, socket->slot, GT_TAG_CLOSE);
    if (!sqe)
        return false;
    gt_prep_close(sqe, socket->fd);
    socket->fd = -1;
    return true;
}

/* It stays on the list of sockets that want something: what is prepared here is completed after the list is worked off. */
void gt_socket_settle(gt_socket *socket)
{
    if (!socket->proactor->ring->dead && prepare_close(socket))
        gt_ring_settle(socket->proactor->ring);
}

/* True when all that the state asks for is prepared, false when the ring had no SQE. */
static bool prepare_socket(gt_socket *socket)
{
    struct gt_ring *ring = socket->proactor->ring;
    if (socket->closing)
        return prepare_close(socket);
    gt_endpoint *endpoint = socket->endpoint;
    endpoint->sent_in_slice = 0;
    if (!socket->poll.armed) {
        gt_endpoint_flush(endpoint); /* no call waits for the last one's error: it is counted */
        if (endpoint->outbound.count > 0) {
            struct io_uring_sqe *sqe = gt_slot_sqe(ring, socket->slot, socket->poll.tag);
            if (!sqe)
                return false;
            gt_prep_poll(sqe, socket->fd, POLLOUT, false);
            socket->poll.armed = true;
        }
    }
    if (!socket->receive.armed && !endpoint->socket_error) {
        struct io_uring_sqe *sqe = gt_slot_sqe(ring, socket->slot, socket->receive.tag);
        if (!sqe)
            return false;
        gt_prep_recvmsg_multishot(sqe, socket->fd, &socket->header, BUFFER_GROUP);
        socket->receive.armed = true;
    }
    gt_endpoint_notify(endpoint);
    return true;
}

void gt_sockets_prepare(gt_proactor *proactor)
{
    gt_socket *socket;
    while ((socket = proactor->wanting_sockets)) {
        if (!prepare_socket(socket))
            return;
        proactor->wanting_sockets = socket->next_wanting;
        if (!proactor->wanting_sockets)
            proactor->wanting_sockets_last = NULL;
        socket->wanting = false;
    }
}

/* --- CQEs to state --- */

/* The source of a datagram; NULL: out of memory.  May collect garbage, and so run anything. */
static gt_peer *find_source(gt_endpoint *endpoint, const gt_sockaddr *raw)
{
    gt_peer *peer = gt_peers_find(&endpoint->peers, raw);
    if (peer)
        return peer;
    gt_sockaddr source; /* the kernel has written no more of it than there is */
    memset(&source, 0, sizeof source);
    memcpy(&source, raw, gt_sockaddr_length(endpoint->family));
    return gt_peers_get(&endpoint->peers, &source);
}

static void queue_datagram(gt_socket *socket, const struct gt_received_message *header, const char *payload,
                           size_t length)
{
    gt_endpoint *endpoint = socket->endpoint;
    if (header->payload_length > endpoint->max_size || header->flags & MSG_TRUNC) {
        endpoint->oversized++;
        return;
    }
    const gt_datagrams *queue = &endpoint->inbound;
    if (queue->count >= endpoint->queue_size || (queue->count > 0 && queue->bytes + length > endpoint->queue_bytes)) {
        endpoint->dropped++;
        return;
    }
    PyObject *address = endpoint->remote;
    uint32_t place = 0;
    if (!address) {
        const gt_peer *peer = find_source(endpoint, (const gt_sockaddr *)(header + 1));
        address = peer ? peer->tuple : NULL;
        place = peer ? (uint32_t)(peer - endpoint->peers.places) : 0;
    }
    PyObject *data = address ? PyBytes_FromStringAndSize(payload, (Py_ssize_t)length) : NULL;
    gt_datagram *datagram = data && !socket->closing ? gt_datagrams_push(&endpoint->inbound, data) : NULL;
    if (datagram) {
        datagram->address = Py_NewRef(address);
        datagram->place = place;
        endpoint->received++;
        endpoint->received_bytes += length;
    } else {
        PyErr_Clear(); /* out of memory: what a full queue does */
        endpoint->dropped++;
    }
    Py_XDECREF(data);
}

static void take_buffer(gt_socket *socket, const struct io_uring_cqe *cqe)
{
    struct gt_buffers *buffers = &socket->proactor->datagram_buffers;
    const char *buffer = gt_buffers_data(buffers, cqe);
    size_t before = sizeof(struct gt_received_message) + socket->header.msg_namelen;
    if (!socket->closing && socket->endpoint && cqe->res >= 0 && (size_t)cqe->res >= before) {
        /* Its only reference may be in a cycle, which a garbage collection in there would end. */
        gt_endpoint *endpoint = (gt_endpoint *)Py_NewRef((PyObject *)socket->endpoint);
        queue_datagram(socket, (const struct gt_received_message *)buffer, buffer + before, (size_t)cqe->res - before);
        Py_DECREF(endpoint);
    }
    gt_buffers_recycle(buffers, cqe);
    gt_buffers_publish(buffers);
}

static void receive_completed(gt_socket *socket, const struct io_uring_cqe *cqe)
{
    if (cqe->flags & IORING_CQE_F_BUFFER)
        take_buffer(socket, cqe);
    if (gt_completion_is_final(cqe)) {
        int error = cqe->res < 0 ? -cqe->res : 0;
        socket->receive.armed = socket->receive.cancelled = false;
        if (error == ENOBUFS)
            socket->proactor->starvations++;
        else if (error && error != ECANCELED && error != EINTR && error != EAGAIN && socket->endpoint)
            socket->endpoint->socket_error = error;
        if (!socket->closing) /* else all that it wanted is prepared, and nothing may keep it */
            gt_socket_want(socket);
    }
}

/* The caller has kept the ring's books for this CQE already.  May destroy the socket. */
bool gt_socket_complete(gt_socket *socket, const struct io_uring_cqe *cqe)
{
    gt_proactor *proactor = socket->proactor;
    const gt_waiter *before = proactor->ready_last;
    switch (gt_key_tag(cqe->user_data)) {
    case GT_TAG_DATAGRAM:
        receive_completed(socket, cqe);
        break;
    case GT_TAG_SEND:
        socket->poll.armed = socket->poll.cancelled = false;
        if (!socket->closing)
            gt_socket_want(socket);
        break;
    default: /* of a close or a cancel: see stream_complete.c */
        break;
    }
    if (!socket->closing && socket->endpoint)
        gt_endpoint_notify(socket->endpoint);
    bool news = proactor->ready_last != before;
    if (socket->closing && socket->fd < 0 && !socket->wanting && gt_slot_retire(proactor->ring, socket->slot))
        destroy_socket(socket);
    return news;
}

/* --- the end of the run --- */

void gt_sockets_detach(gt_proactor *proactor)
{
    for (gt_socket *socket = proactor->sockets; socket; socket = socket->next) {
        gt_endpoint *endpoint = socket->endpoint;
        if (endpoint) {
            gt_endpoint_flush(endpoint);
            endpoint->closed = true;
            endpoint->socket = NULL;
            socket->endpoint = NULL;
        }
        gt_socket_close(socket);
    }
}

void gt_sockets_abandon(gt_proactor *proactor)
{
    gt_sockets_detach(proactor);
    for (gt_socket *socket = proactor->sockets; socket; socket = socket->next) {
        if (socket->fd >= 0)
            close(socket->fd);
        socket->fd = -1;
    }
}

/* Nothing is in flight any more, or `leak` what the kernel may still touch. */
void gt_sockets_free(gt_proactor *proactor, bool leak)
{
    while (proactor->sockets && !leak)
        destroy_socket(proactor->sockets);
    proactor->sockets = proactor->wanting_sockets = proactor->wanting_sockets_last = NULL;
    if (!leak)
        gt_buffers_close_group(proactor->ring, &proactor->datagram_buffers);
}

void gt_sockets_forget(gt_proactor *proactor)
{
    for (gt_socket *socket = proactor->sockets; socket; socket = socket->next)
        if (socket->endpoint)
            socket->endpoint->closed = true;
}
