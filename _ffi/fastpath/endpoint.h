/* endpoint.h: the types of a datagram endpoint.
 *
 *     gt_endpoint (object)          the endpoint as the program sees it: queues, counters, and the lines of calls that wait
 *       ├─ gt_socket (plain C)      the same as the kernel sees it: descriptor, slot, what is armed
 *       └─ gt_call                  one call of receive() or send(): call.h
 *
 * As with connections (see fastpath.h) each of gt_endpoint and gt_socket points to the other without owning it.  A
 * gt_socket lives until the final CQE of everything in flight on it.  It is small: the kernel reads the receive's msghdr
 * after the call that gives it, and nothing else, because sendmmsg(2) is done with its datagrams when it returns.
 *
 * Files: datagrams.c has the two queues and the addresses, wait_queue.c the calls that wait, socket.c turns the state of an endpoint
 * into SQEs and CQEs into state, and sends; datagram_calls.c has the rows of its calls, endpoint.c the Python type.
 */
#ifndef GAIN_TRIO_ENDPOINT_H
#define GAIN_TRIO_ENDPOINT_H

#include "fastpath.h"

typedef struct gt_socket gt_socket;
typedef struct gt_endpoint gt_endpoint;

/* --- datagrams.c: addresses, and datagrams that wait --- */

/* An address in both forms.  `reached`: the last datagram to it that was sent at once has left. */
typedef struct {
    gt_sockaddr raw;
    PyObject *tuple; /* NULL: the place is empty */
    bool reached;
} gt_peer;

/* The addresses seen last.  Each has two places by its hash, which are neighbours, and shares them with others of that hash. */
typedef struct {
    gt_peer *places;
    uint32_t *by_tuple;  /* place + 1 of the tuple of that hash of its address in memory */
    uint32_t count;      /* a power of two */
    uint32_t latest;     /* the place of the datagram that was received last, where that is in the table still */
    uint32_t turned_out; /* addresses that lost their place to others */
} gt_peers;

static inline socklen_t gt_sockaddr_length(int family)
{
    return family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
}
bool gt_sockaddr_equal(const gt_sockaddr *one, const gt_sockaddr *other);
bool gt_sockaddr_parse(PyObject *tuple, int family, gt_sockaddr *raw); /* false: exception set */

gt_peer *gt_peers_get(gt_peers *peers, const gt_sockaddr *raw);  /* NULL: out of memory, exception set */
gt_peer *gt_peers_find(gt_peers *peers, const gt_sockaddr *raw); /* NULL: not there */
gt_peer *gt_peers_find_tuple(gt_peers *peers, PyObject *tuple);  /* NULL: not there */
void gt_peers_clear(gt_peers *peers);

typedef struct {
    PyObject *data;     /* bytes */
    PyObject *address;  /* received: the source as a tuple; to be sent: NULL */
    union {             /* of an endpoint that is not connected */
        gt_sockaddr to; /* to be sent */
        uint32_t place; /* received: of the source among the peers, unless it has lost that meanwhile */
    };
} gt_datagram;

/* A circle. */
typedef struct {
    gt_datagram *datagrams;
    uint32_t head;
    uint32_t count;
    uint32_t capacity; /* a power of two */
    size_t bytes;
} gt_datagrams;

/* Takes a reference.  NULL: out of memory, no exception set. */
gt_datagram *gt_datagrams_push(gt_datagrams *queue, PyObject *data);
static inline gt_datagram *gt_datagrams_at(const gt_datagrams *queue, uint32_t index)
{
    return &queue->datagrams[(queue->head + index) & (queue->capacity - 1)];
}
gt_datagram gt_datagrams_pop(gt_datagrams *queue); /* the caller's references; the queue is not empty */
void gt_datagrams_clear(gt_datagrams *queue);

/* --- socket.c --- */

struct gt_socket {
    gt_proactor *proactor; /* borrowed */
    gt_endpoint *endpoint; /* borrowed; NULL when the program has dropped it */
    gt_socket *previous, *next;
    gt_socket *next_wanting;
    struct msghdr header; /* of the receive */
    uint32_t slot;
    int fd; /* -1 once its close has been prepared */
    bool wanting;
    gt_operation receive;
    gt_operation poll; /* for room to send */
    bool closing;
};

gt_socket *gt_socket_open(gt_proactor *proactor, gt_endpoint *endpoint, int fd, int family, bool connected,
                          uint32_t buffers);
void gt_socket_want(gt_socket *socket);
void gt_socket_close(gt_socket *socket);  /* when the run waits next */
void gt_socket_settle(gt_socket *socket); /* and at once: it is closing, and the thread is the run's */

/* --- wait_queue.c: calls that wait --- */

struct gt_wait_queue {
    gt_call *first, *last;
    uint32_t notified; /* calls off the line that were notified, and whose tasks have yet to run */
};

void gt_wait_queue_join(gt_wait_queue *queue, gt_call *call); /* as its last one; the call has a waiter */
void gt_wait_queue_leave(gt_call *call);
void gt_endpoint_notify(gt_endpoint *endpoint); /* the calls for which there is something now */
/* By Trio's scheduler: all of them, and then the first exception, because Trio's code is called and can be interrupted. */
int gt_wait_queue_wake_all(gt_wait_queue *queue);

/* --- datagram_calls.c --- */

enum { GT_DATAGRAM_RECEIVE, GT_DATAGRAM_NEXT, GT_DATAGRAM_SEND };

extern const gt_kind gt_datagram_kinds[];

/* --- endpoint.c --- */

struct gt_endpoint {
    PyObject_HEAD
    gt_proactor *proactor;
    gt_socket *socket; /* NULL once it is gone */
    int family;
    PyObject *remote; /* the address that it is connected to, or NULL */
    bool remote_reached;
    bool closed;
    int socket_error; /* errno that the socket reported: the next receive(), or send() if connected, raises it */
    gt_wait_queue receiving, sending;
    gt_peers peers;
    gt_datagrams inbound, outbound;
    uint32_t queue_size;
    size_t queue_bytes, max_size;
    uint32_t sent_in_slice; /* datagrams that send() has taken since the proactor waited last */
    uint64_t received, received_bytes, sent, sent_bytes, failed, dropped, oversized;
    PyObject *context;
    PyObject *weakrefs;
};

extern PyTypeObject gt_endpoint_type;

#define GT_SENDS_A_SLICE                                                                                               \
    256U /* send() waits for the run's next wait after this number, so that others get their turn */
#define GT_MOST_BYTES (1U << 18) /* unsent, when send() waits */
static inline bool gt_endpoint_has_room(const gt_endpoint *endpoint)
{
    return endpoint->sent_in_slice < GT_SENDS_A_SLICE && endpoint->outbound.count < GT_SENDS_A_SLICE &&
           endpoint->outbound.bytes < GT_MOST_BYTES;
}
bool gt_endpoint_sends_at_once(const gt_call *call);
int gt_endpoint_flush(gt_endpoint *endpoint); /* errno of the last datagram in the queue, 0 if it has left or waits */
/* False: out of memory, exception set. */
bool gt_endpoint_set_reached(gt_endpoint *endpoint, const gt_sockaddr *to, bool reached);

#endif
