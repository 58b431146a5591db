/* fastpath.h: the types of gain_trio._fastpath and who owns what.
 *
 *     Proactor (Python object)            one a run; owns the lists below, borrows the struct gt_ring of Python's Ring
 *       └─ gt_stream (plain C)           one a connection, as the kernel sees it: descriptor, slot, queues, what is armed
 *            └─ gt_connection (object)   the same connection, as the program sees it
 *                 └─ gt_call (object)    one a call of receive(), send(), flush(), ...: call.h
 *       └─ gt_call (object)              one a call of wait_readable() or wait_writable(); its slot holds a reference
 *
 * A gt_stream lives until the final CQE of everything in flight on it, whatever the program does: all memory the kernel may
 * touch hangs on it, or is a buffer that the ring or the proactor has provided.  A gt_connection lives as long as the program
 * holds it.  Each points to the other without owning it, and whichever goes first clears the other's pointer.
 *
 * Files, from the bottom to the top: likelihood.h has what the compiler knows of the usual message; field.h reads
 * Trio's objects, and task.c resumes a Trio task; worklists.c has the proactor's lists; waiter.c has the parked tasks,
 * and call.c is what `await` does; inbound.c and outbound.c are the two byte queues, spares.c has their buffers, and
 * bytes_buffers.c those that need no copy; stream.c has the state of a connection, stream_prepare.c turns it into SQEs,
 * and stream_complete.c CQEs into state; deadline.c has a connection's deadlines, handler.c the coroutine of its
 * handler, stream_calls.c its calls, send_parts.c the data of a send, nowait.c the methods that never wait,
 * connection_calls.c those that are awaited, closing.c those that end it, connection.c the Python type; callback_conn.c
 * is for callbacks, and tls_*.c (tls.h) are for TLS; poll.c waits for readiness; reaping.c is the two phases of a tick,
 * and prefetch.h has what it reads ahead of them; proactor.c ties them together.  All this is mechanism; policy (what
 * to do about an error, when to close) is Python's.
 *
 * All of it runs under the GIL, in the thread of the run.
 */
#ifndef GAIN_TRIO_FASTPATH_H
#define GAIN_TRIO_FASTPATH_H

#include "call.h"
#include "field.h"

#include "../ring.h"

#include <pthread.h>
#include <sys/uio.h>

typedef struct gt_connection gt_connection;

/* --- spares.c: buffers that were emptied --- */

#define GT_LEAST_SPARE 256U /* bytes: no buffer is smaller */

typedef struct gt_spare gt_spare;
typedef struct {
    gt_spare *first; /* each of memory of PyMem_Malloc() */
    uint32_t count, most;
} gt_spares;

char *gt_spares_take(gt_spares *spares, size_t *capacity); /* NULL, and a capacity of 0: there is none */
bool gt_spares_give(gt_spares *spares, char *buffer,
                    size_t capacity); /* false: it is not taken, and still the caller's */
/* Keep no more of them than there are connections; 0: none. */
void gt_spares_limit(gt_spares *spares, uint64_t connections);

/* --- inbound.c: bytes received and not yet taken --- */

#define GT_LENT 2U /* the most pieces that lie in the ring's buffers: a message may begin in one, and end in the next */
#define GT_LENT_LEAST 4096U /* bytes of the first one: to copy less costs no more than to lend it */

/* A piece of one of the ring's buffers. */
typedef struct {
    const char *data;
    uint32_t size;
    uint16_t buffer;
} gt_lent;

typedef struct {
    PyObject *whole; /* the usual case: exactly one chunk, already a bytes object; then `length` is 0 */
    char *data;
    size_t start; /* of what is left of `whole` or of `data` */
    size_t length;
    size_t capacity;
    PyObject **later;  /* what follows either: a circle of large chunks, as bytes objects */
    size_t later_size; /* bytes in them */
    uint32_t later_head, later_count, later_capacity; /* the last is a power of two, or 0 */
    gt_spares *spares;                                /* borrowed: the proactor's */
    struct gt_ring *lender;
    gt_lent lent[GT_LENT]; /* in place of all of these, but for `start`; the second one's bytes are in `later_size` */
    uint32_t lent_count;
    uint32_t most; /* bytes that `data` had to have room for: it, or, while there is none, the last one */
} gt_inbound;

/* The bytes that a receive without a limit can return without copying them. */
static inline size_t gt_inbound_head_size(const gt_inbound *queue)
{
    if (queue->lent_count > 0)
        return queue->lent[0].size - queue->start;
    return queue->whole ? (size_t)PyBytes_GET_SIZE(queue->whole) - queue->start : queue->length;
}
static inline size_t gt_inbound_size(const gt_inbound *queue)
{
    return gt_inbound_head_size(queue) + queue->later_size;
}
/* What is behind the head moves up when that is taken, so a queue without a head has nothing. */
static inline bool gt_inbound_is_empty(const gt_inbound *queue)
{
    return !queue->whole && queue->length == 0 && queue->lent_count == 0;
}
/* Both: 0, or -1 out of memory, no exception set. */
int gt_inbound_append(gt_inbound *queue, const char *data, size_t length);
int gt_inbound_append_object(gt_inbound *queue, PyObject *chunk); /* a large bytes object; takes the reference */
PyObject *gt_inbound_take(gt_inbound *queue, size_t max);         /* `max` bytes or all, removed */
PyObject *gt_inbound_take_piece(gt_inbound *queue, size_t max);   /* at most `max`, as they lie there, removed */
PyObject *gt_inbound_peek(const gt_inbound *queue, size_t max);
size_t gt_inbound_take_into(gt_inbound *queue, char *target, size_t max); /* how much; NULL target: discard */
/* Where `needle` begins, at `start` or after it; SIZE_MAX: nowhere.  -1: out of memory, exception set. */
int gt_inbound_find(gt_inbound *queue, const char *needle, size_t length, size_t start, size_t *found);
void gt_inbound_clear(gt_inbound *queue);
/* Queue what a CQE has brought without copying it.  Only where the queue is empty, or has such pieces and less than GT_LENT. */
void gt_inbound_lend(gt_inbound *queue, struct gt_ring *ring, const struct io_uring_cqe *cqe);
/* How many bytes of it are whole such pieces, `max` at most. */
size_t gt_inbound_lent_size(const gt_inbound *queue, size_t max);
/* Remove these: how many.  The caller gives each of them back (gt_buffers_return). */
uint32_t gt_inbound_take_lent(gt_inbound *queue, size_t size, gt_lent *lent);
int gt_inbound_settle(gt_inbound *queue); /* copy what is lent; -1: out of memory, some is lost, no exception set */

/* --- bytes_buffers.c: provided buffers that are bytes objects --- */

#define GT_BYTES_BUFFERS 64U  /* a power of two */
#define GT_LARGE_PIECE 15360U /* bytes: a piece of no less is handed out without a copy */

typedef struct {
    struct gt_buffers buffers;
    PyObject *objects[GT_BYTES_BUFFERS];
    char *places[GT_BYTES_BUFFERS];
    uint64_t taken; /* objects handed out */
    bool refused;   /* they are not wanted, or could not be opened */
} gt_bytes_buffers;

void gt_bytes_buffers_init(gt_bytes_buffers *set, const struct gt_ring *ring);
bool gt_bytes_buffers_open(gt_bytes_buffers *set, struct gt_ring *ring); /* false: there are none */
/* The data of a completion, whose buffer is another object from now on.  NULL: it is to be copied. */
PyObject *gt_bytes_buffers_take(gt_bytes_buffers *set, const struct io_uring_cqe *cqe);
/* Nothing is in flight any more, or `leak` what the kernel may still touch. */
void gt_bytes_buffers_free(gt_bytes_buffers *set, struct gt_ring *ring, bool leak);

/* --- outbound.c: bytes sent and not yet taken by the kernel --- */

typedef struct {
    PyObject *owner; /* a bytes object that is referenced, or NULL: `data` is ours */
    char *data;
    size_t length;
    size_t capacity;
} gt_segment;

typedef struct {
    gt_segment *segments; /* a circle of `capacity` (a power of two) places */
    gt_segment first;     /* they, where one place is enough */
    gt_spares *spares;    /* borrowed: the proactor's */
    uint32_t head;
    uint32_t count;
    uint32_t capacity;
    size_t sent; /* of the head segment */
    size_t size; /* bytes in all, less `sent` */
} gt_outbound;

void gt_outbound_init(gt_outbound *queue, gt_spares *spares); /* which has nothing, and no array */

#define GT_REFERENCE 4096 /* a bytes object this large is referenced until it is sent, not copied */
/* Both: 0, or -1 out of memory, no exception set.  `in_flight`: how many segments the kernel may be reading, from the head on. */
int gt_outbound_copy(gt_outbound *queue, const char *data, size_t length, uint32_t in_flight);
int gt_outbound_reference(gt_outbound *queue, PyObject *bytes);
static inline const gt_segment *gt_outbound_at(const gt_outbound *queue, uint32_t index)
{
    return &queue->segments[(queue->head + index) & (queue->capacity - 1)];
}
#define GT_LARGEST_SEND (1U << 26) /* bytes an operation; more is sent by the next one */
#define GT_GATHERED 32U            /* segments an operation */
#define GT_SEND_FLAGS ((uint32_t)(MSG_NOSIGNAL | MSG_DONTWAIT))
#define GT_PORTION 32768U      /* bytes that a slow program receives at a time */
#define GT_PUSHED_LEAST 8192U  /* bytes that are offered to the kernel at once: to send less costs more than to wait */
#define GT_PUSHED_MOST 131072U /* the same: the GIL is not released for it */
#define GT_PAGE 4096U          /* small marks are no small operations */
/* The first segments, up to GT_GATHERED of them: how many, and their bytes. */
uint32_t gt_outbound_gather(const gt_outbound *queue, struct iovec *pieces, size_t *length);
void gt_outbound_sent(gt_outbound *queue, size_t length);
void gt_outbound_clear(gt_outbound *queue, uint32_t in_flight);
void gt_outbound_free(gt_outbound *queue);

/* --- stream.c, stream_prepare.c, stream_complete.c: a connection as the kernel sees it --- */

/* An operation that can be in flight. */
typedef struct {
    uint8_t tag; /* enum gt_tag: of its key */
    bool armed;
    bool cancelled; /* so is its cancel */
} gt_operation;

typedef struct gt_gather gt_gather; /* what a send of several segments points to */

struct gt_stream {
    gt_proactor *proactor;     /* borrowed: the proactor sees every stream of its off before it goes */
    gt_connection *connection; /* borrowed; NULL when the program has dropped it */
    gt_stream *previous, *next;
    gt_stream *next_wanting;
    uint32_t slot;
    int fd;        /* -1 once its close has been prepared */
    uint16_t file; /* the same, registered, or 0 */
    bool wanting;  /* on the proactor's list of streams to prepare SQEs for */
    bool closing;
    bool detached; /* closing, but the descriptor has another owner now, and stays open */
    bool timed;    /* active_at is kept up to date */

    gt_operation receive, watch;
    gt_operation send;      /* or, with send_polls, a poll for room in its place */
    bool receive_succeeded; /* the receive that is or was armed last has brought something */
    bool receive_stale;     /* armed since before the hangup, so it may never report it */
    bool receive_multishot; /* that one is, or was, multishot */
    bool receive_paused;    /* the queue is over its high mark */
    bool receive_begun;     /* it was not the first one */
    bool lends;             /* a task that waits for bytes reads them where they lie, see inbound.c */
    bool receive_bytes;     /* it takes its buffers from the proactor's bytes_buffers */
    uint8_t plain_sends;    /* on its descriptor, counted round and round */
    uint8_t large_pieces;   /* among the last ones: see gt_stream_wants_bytes() */
    bool receive_ahead;     /* the program looks at its queue: up to the high mark, also when no task waits */
    bool receive_suspended; /* a task waits for the receive to be over, to take the descriptor away */
    bool watch_again;       /* it has fired, and was armed once more */
    bool hung_up;           /* the watch has fired: nothing more will arrive than what is queued */
    bool failed;            /* and that was with an error, which the socket was not asked for yet */
    bool broken;            /* and the kernel takes nothing to send any more */
    bool end_of_stream;
    bool end_reported; /* a call has answered with the end */

    bool
        send_incomplete; /* a send ended with only a part of its data queued: the peer would take a part for the whole */
    bool send_short;     /* a short write: there was no room, or an error that was not reported */
    bool send_blocked;   /* the next send has to wait for room */
    bool send_polls;
    bool send_pushed;  /* a large piece was offered at once since the stream was prepared */
    bool poll_hung_up; /* a poll for room has reported a hangup */
    bool room_wanted;  /* a call waits for room */
    bool room;         /* there is some */

    /* What answers of GT_CHANGE have reported. */
    bool change_noted;  /* not yet: the program has asked for an answer */
    bool full_seen;     /* this pause */
    size_t unseen;      /* not yet: bytes that have arrived; the program may have taken some of them */
    uint64_t sent_seen; /* bytes that the kernel has taken */

    int receive_error, send_error; /* errno, 0 for none */
    int socket_error;              /* the socket's, which was asked for; what is queued can still be received */
    uint32_t send_in_flight;       /* segments in the send that is armed, or 0 */
    uint32_t send_length;          /* bytes in it */
    gt_gather *gather;             /* its, or NULL */
    size_t receive_high, receive_low, send_high;
    double active_at;  /* on Trio's clock: when a byte was moved last, in either direction */
    const void *given; /* where the bytes lay that receive() has returned last: only for a prefetch */
    size_t fill;       /* bytes that are waited for, and the high mark is no less than that; 0: none are */
    gt_inbound inbound;
    gt_outbound outbound;
};

gt_stream *gt_stream_open(gt_proactor *proactor, gt_connection *connection, int fd); /* NULL: exception set */
/* Close the descriptor: with RST if asked for, or if the peer could take a part for the whole.  0, or the errno of asking for
 * the RST; it is closed in any case. */
int gt_stream_close(gt_stream *stream, bool reset);
/* The descriptor is closed or given away next: the ring lets go of the socket. */
void gt_stream_unregister(gt_stream *stream);
void gt_stream_destroy(gt_stream *stream); /* only when nothing is in flight on it */
void gt_stream_want(gt_stream *stream);
void gt_stream_want_first(gt_stream *stream); /* before those that have had their share */
/* Prepare all that the state asks for; false: the ring had no SQE. */
bool gt_stream_prepare(gt_stream *stream);
bool gt_stream_complete(gt_stream *stream, const struct io_uring_cqe *cqe); /* true: news for the program */
void gt_stream_ask_for_error(gt_stream *stream);                            /* the socket, which reports it once */
bool gt_stream_wake_receiver(const gt_stream *stream);                      /* if it waits for no more than there is */
bool gt_stream_wants_bytes(const gt_stream *stream);                        /* to receive into bytes objects */
/* Before something is to be sent: the errno for which it cannot be, 0 if it can. */
int gt_stream_check_sending(gt_stream *stream);
void gt_stream_push(gt_stream *stream);                      /* offer what is outbound to the kernel */
void gt_stream_push_large(gt_stream *stream, size_t length); /* the same, when a piece of this length was queued */
void gt_stream_look_ahead(gt_stream *stream);                /* the program looks at the queue, or is called back */
void gt_stream_consumed(gt_stream *stream);                  /* inbound bytes were taken */
void gt_stream_fill(gt_stream *stream, size_t count);        /* a task waits for `count` bytes */
/* `room` is to become true when the kernel would take something. */
void gt_stream_want_room(gt_stream *stream, bool wanted);
void gt_stream_suspend(gt_stream *stream, bool suspended); /* receive nothing for as long as this is so */
/* Nothing is in flight but, perhaps, a send: what a detach waits for. */
static inline bool gt_stream_is_idle(const gt_stream *stream)
{
    return !stream->receive.armed && !stream->watch.armed && !stream->send_polls;
}
int gt_stream_take(gt_stream *stream); /* the descriptor, which the caller owns: the end of the stream */

/* --- stream_calls.c: the calls of a connection --- */

enum gt_stream_call {
    GT_RECEIVE,
    GT_NEXT,
    GT_MESSAGE,
    GT_WAIT_DATA,
    GT_RECEIVE_INTO,
    GT_FILL,
    GT_ARRIVAL,
    GT_CHANGE,
    GT_DELIVER,
    GT_DETACH,
    GT_SEND,
    GT_FLUSH,
    GT_WRITABLE,
    GT_ROOM,
    GT_CLOSE_FLUSH,
};
enum { GT_CHANGED = 0, GT_ENDED = -1, GT_FULL = -2 }; /* answers of GT_CHANGE, beside numbers of bytes */
enum { GT_WATCH_SENT = 1, GT_WATCH_RESETS = 2 };      /* what it reports on request */

extern const gt_kind gt_stream_kinds[];

/* --- send_parts.c: the data of a send --- */

int gt_call_set_parts(gt_call *call, PyObject *parts);     /* a list or tuple; -1: exception set */
int gt_call_queue_parts(gt_call *call, bool all);          /* as much as the marks allow, or all; -1: exception set */
int gt_call_queue_small(gt_call *call, gt_stream *stream); /* the same of one bytes object that is to be copied */
bool gt_call_is_incomplete(const gt_call *call);           /* it has queued a part of its data, and not the rest */
bool gt_connection_open_stream(gt_connection *connection, gt_stream **stream); /* false: exception set */

/* --- connection.c --- */

/* One direction of a connection. */
typedef struct {
    gt_call *call;    /* borrowed: the call in progress, from parking to its end */
    double deadline;  /* on Trio's clock */
    double looked_at; /* when the keeper of deadlines comes */
} gt_direction;

static inline bool gt_direction_waits(const gt_direction *direction)
{
    return direction->call && direction->call->waiter->task;
}
/* Let the task that waits in this direction, if any, look at the state again. */
static inline int gt_direction_wake(const gt_direction *direction)
{
    return direction->call ? gt_waiter_wake(direction->call->waiter, false) : 0;
}

/* The attributes that Python keeps of a connection.  They are made with it, which takes less than to set them. */
enum gt_attribute {
    GT_DRAIN_DEADLINE, /* these three first, because a message looks at them */
    GT_BETWEEN,
    GT_DRAINS,
    GT_MARKS,
    GT_CLOSE_TIMEOUT,
    GT_LOCAL_ADDRESS,
    GT_REMOTE_ADDRESS,
    GT_PROXY_HEADER,
    GT_SUCCESSOR,
    GT_TRANSFER,
    GT_DRAINING,
    GT_DEADLINES_KEPT,
    GT_PROXY_HEADER_SIZE,
    GT_ATTRIBUTES, /* how many there are */
};

struct gt_connection {
    PyObject_HEAD
    gt_proactor *proactor;
    gt_stream *stream; /* NULL once the stream is gone */
    gt_direction receiving, sending;
    uint64_t bytes_received, bytes_sent; /* here, because they are asked for when the stream is gone, too */
    bool closed;                         /* refuses calls */
    bool detached;                       /* closed, because its descriptor has another owner */
    bool send_eof;                       /* refuses sends */
    bool send_held;                      /* a task sends past this object: calls of the sending side are busy */
    PyObject *context;
    PyObject *weakrefs;
    PyObject *attributes[GT_ATTRIBUTES];
};

extern PyTypeObject gt_connection_type;

/* --- between.c: the wait between two messages --- */

PyObject *gt_connection_waits_between(gt_connection *self, PyObject *ignored);
bool gt_between_is_taken(const gt_connection *connection); /* by code in Python */
int gt_between_park(gt_connection *connection);            /* -1: exception set */
bool gt_between_is_over(const gt_call *call);              /* there is no answer, and the drain's deadline has passed */
void gt_between_end(gt_connection *connection);            /* of the call that waited */

/* --- messages.c: what messages() returns --- */

extern PyTypeObject gt_messages_type;
PyObject *gt_connection_chunks(gt_connection *self, PyObject *ignored);

/* --- closing.c: its ends --- */

size_t gt_connection_unsent(const gt_connection *connection); /* bytes that the kernel has not accepted */
PyObject *gt_connection_refuse_calls(gt_connection *self, PyObject *ignored);
PyObject *gt_connection_refuse_sends(gt_connection *self, PyObject *ignored);
PyObject *gt_connection_close(gt_connection *self, PyObject *reset);
PyObject *gt_connection_close_plainly(gt_connection *self, PyObject *ignored);

/* --- connection_calls.c: its methods that are awaited --- */

PyObject *gt_connection_receive(gt_connection *self, PyObject *const *args, Py_ssize_t count, PyObject *names);
PyObject *gt_connection_next(gt_connection *self);
PyObject *gt_connection_message(gt_connection *self);
PyObject *gt_connection_wait_data(gt_connection *self, PyObject *ignored);
PyObject *gt_connection_receive_into(gt_connection *self, PyObject *buffer);
PyObject *gt_connection_fill(gt_connection *self, PyObject *count);
PyObject *gt_connection_wait_change(gt_connection *self, PyObject *watched);
PyObject *gt_connection_deliver(gt_connection *self, PyObject *const *args, Py_ssize_t given);
/* The numbers among the arguments of _deliver(). */
typedef struct {
    long watched;
    size_t most_untimed, most; /* bytes that a callback gets */
} gt_delivery;
bool gt_delivery_parse(gt_delivery *delivery, PyObject *const *args, Py_ssize_t given); /* false: exception set */
PyObject *gt_connection_detach(gt_connection *self, PyObject *ignored);
PyObject *gt_connection_send(gt_connection *self, PyObject *data);
PyObject *gt_connection_flush(gt_connection *self, PyObject *ignored);
PyObject *gt_connection_wait_writable(gt_connection *self, PyObject *ignored);
PyObject *gt_connection_wait_for_room(gt_connection *self, PyObject *ignored);
PyObject *gt_connection_close_flush(gt_connection *self, PyObject *ignored);

/* --- handler.c: the coroutine of a handler --- */

extern PyTypeObject gt_handler_type;
PyObject *gt_connection_handled(gt_connection *self, PyObject *const *arguments, Py_ssize_t count);
/* `deliver` of a kind: only where the task's coroutine is an object that can show the callback to Ctrl-C. */
bool gt_handler_deliver(gt_call *call, PyObject *coro, PyObject **result);

/* --- deadline.c: deadlines, and the time of the last byte --- */

void gt_direction_init(gt_direction *direction);
int gt_connection_watch(gt_connection *connection, gt_direction *direction); /* both run Python code */
int gt_connection_unwatch(gt_connection *connection);
PyObject *gt_connection_deadline_passed(gt_connection *self, PyObject *args);
PyObject *gt_connection_get_deadline(gt_connection *self, void *closure); /* closure: NULL receiving, else sending */
int gt_connection_set_deadline(gt_connection *self, PyObject *value, void *closure);
PyObject *gt_connection_timed(gt_connection *self, PyObject *wanted);
PyObject *gt_connection_has_sent(gt_connection *self, PyObject *count);
PyObject *gt_connection_get_active_at(gt_connection *self, void *closure);
PyObject *gt_connection_unacknowledged(gt_connection *self, PyObject *ignored);
PyObject *gt_connection_break(gt_connection *self, PyObject *number);

/* --- nowait.c: calls that never wait --- */

PyObject *gt_connection_send_nowait(gt_connection *self, PyObject *data);
PyObject *gt_connection_take_exactly(gt_connection *self, PyObject *count);
PyObject *gt_connection_push(gt_connection *self, PyObject *ignored);
int gt_stream_queue_bytes(gt_stream *stream, PyObject *bytes); /* -1: out of memory, no exception set */
/* Would send_nowait() raise?  Of a connection that is open. */
bool gt_connection_cannot_send_now(const gt_connection *self);

/* --- callback_conn.c: next() and write() of a conn for callbacks, and how it is made --- */

PyObject *gt_hasten(PyObject *module, PyObject *type);
PyObject *gt_copied(PyObject *module, PyObject *original);

/* --- poll.c: a task that waits for a descriptor to become ready --- */

/* The awaitable, which the table, a dict, has until the next one for the same descriptor: that costs less than to take it out
 * again. */
PyObject *gt_poll_new(gt_proactor *proactor, PyObject *table, PyObject *number, uint32_t events, bool is_socket);
bool gt_poll_complete(gt_call *poll, const struct io_uring_cqe *cqe); /* true: its task is to be resumed */
void gt_poll_drop(gt_call *poll);   /* its operation has ended, and its task is not to be resumed */
void gt_poll_cancel(gt_call *poll); /* its operation is to end */

/* --- task.c: Trio's tasks --- */

typedef struct {
    PyObject *run_context; /* the __dict__ of trio's GLOBAL_RUN_CONTEXT in this thread; empty outside a task */
    PyObject *runner;      /* NULL until bound */
    PyObject *main_task;   /* NULL until known */
    PyObject *instruments; /* the dict of the runner's instruments, by hook */
    PyObject *trap_type;   /* WaitTaskRescheduled */
    PyObject *checkpoint;  /* CancelShieldedCheckpoint: what a task yields to be scheduled again at once */
    PyObject *task_type;
    PyObject *abort_succeeded;
    PyObject *woken;                  /* outcome.Value(None) */
    PyObject *reschedule;             /* (task, outcome) */
    PyObject *task_exited;            /* (task, value, exception or None) */
    PyObject *runner_task_exited;     /* Trio's own: (task, outcome) */
    PyObject *unusual_yield;          /* (task, message) */
    PyObject *step_observed;          /* (task): an instrument was added during its step */
    PyObject *current_time;           /* (): of the run's clock */
    PyObject *currently_ki_protected; /* (): whether Ctrl-C is kept from the code that calls it */
    gt_field coro, context, abort_func, custom_sleep_data, next_send_fn, cancel_points, schedule_points, cancel_status;
    gt_field ki_protected; /* since Trio 0.28 */
    gt_field effectively_cancelled;
    PyObject *laid_out; /* borrowed: task_type if all of these lie at offsets, else NULL; then no step is made here */
    gt_field ki_pending, autojump_threshold, deadline_heap; /* of the runner; the last one of its deadlines */
    PyObject *run_queue, *waiting_for_idle, *deadlines, *infinity;
    bool may_linger;
    PyObject *entered; /* borrowed of run_context: the task that was put there here, or NULL */
    PyObject *stepped; /* borrowed: the task whose coroutine runs in a step made here, or NULL */
    gt_waiter *parked; /* the one whose trap was yielded last, or NULL */
    bool bound;
} gt_trio;

/* Whether the fields of a task, and of its cancel status, are read and written where they lie. */
static inline bool gt_trio_knows_layout(const gt_trio *trio, PyObject *task)
{
    return (PyObject *)Py_TYPE(task) == trio->laid_out;
}
int gt_trio_bind(gt_trio *trio, PyObject *seam); /* takes what it needs from the attributes of `seam` */
void gt_trio_unbind(gt_trio *trio);              /* lets go of the run */
void gt_trio_free(gt_trio *trio);
int gt_trio_traverse(gt_trio *trio, visitproc visit, void *arg);
bool gt_trio_is_in_task(const gt_trio *trio);
PyObject *gt_trio_current_task(gt_trio *trio); /* borrowed; NULL: exception set */
int gt_trio_cancel_is_pending(gt_trio *trio, PyObject *task);
int gt_trio_count_cancel_point(gt_trio *trio, PyObject *task);
bool gt_trio_is_observed(gt_trio *trio);
/* Whether Ctrl-C reaches the code that runs now exactly if it reaches this task's code as such.  1, 0, or -1 with an exception. */
int gt_trio_is_protected_as(gt_trio *trio, PyObject *task);
/* The earliest deadline and the number of them: by these Trio's loop would wait differently. */
typedef struct {
    PyObject *earliest; /* owned; NULL for none */
    Py_ssize_t count;
} gt_deadlines;

int gt_trio_note_deadlines(gt_trio *trio, gt_deadlines *noted);
int gt_trio_can_linger(gt_trio *trio, const gt_deadlines *noted);
int gt_trio_resume(gt_trio *trio, PyObject *task, gt_waiter *waiter); /* one step, in place */
int gt_trio_leave_task(gt_trio *trio); /* before the program's code runs outside a step */
int gt_trio_reschedule(gt_trio *trio, PyObject *task, PyObject *abort);
int gt_task_module_init(void);

/* --- proactor.c --- */

struct gt_proactor {
    PyObject_HEAD
    struct gt_ring *ring;
    PyObject *ring_owner; /* keeps the memory of `ring` */
    gt_trio trio;
    gt_stream *streams;
    struct gt_socket *sockets; /* of datagram endpoints, see endpoint.h */
    struct gt_socket *wanting_sockets, *wanting_sockets_last;
    uint64_t socket_count;
    struct gt_buffers datagram_buffers; /* opened with the first endpoint */
    gt_bytes_buffers bytes_buffers;     /* opened for the first connection with large pieces */
    gt_spares spares;
    gt_call *polls; /* pending: the reference of each one's slot counts as the proactor's, for the garbage collector */
    gt_stream *wanting_first, *wanting_last;
    gt_stream *wanting_starved;          /* the last of those at its head that went away with nothing, or NULL */
    gt_waiter *ready_first, *ready_last; /* the list owns a reference of each */
    gt_waiter *spare_waiters;            /* the same */
    uint32_t spare_count;
    PyObject *completions; /* list of (key, result, flags): single operations, for Python */
    PyObject *failure;     /* an exception of a step made while lingering, for process() to raise, or NULL */
    PyObject *make_broken; /* errno -> exception: the one place that translates errno */
    PyObject *closed_error, *busy_error, *too_slow_error;
    struct io_uring_cqe *batch;
    uint32_t batch_capacity;
    uint32_t batch_size;       /* completions of the last one */
    unsigned long thread;      /* as Python counts them */
    uintptr_t own_thread;      /* the same one, see gt_this_thread() */
    int wakeup_descriptor;     /* an eventfd that ends the wait when it is written to; -1 once it is closed */
    int completion_descriptor; /* one that counts completions, or -1 */
    uint64_t stream_count;
    uint64_t closing_count; /* of them, those that the kernel has not let go yet */
    uint64_t timed_streams; /* that want to know when they moved a byte last */
    double now;             /* on Trio's clock, of the last batch; kept up to date while there are timed streams */
    /* The current time slice, see "time slices" in worklists.c. */
    uint32_t answers_left;  /* from memory, until the clock is looked at */
    uint32_t answers_timed; /* those that the time since slice_began is for, 0: it has not been looked at */
    int64_t slice_began;
    int64_t slice_ns;     /* how long a task may answer from memory before others have their turn */
    uint64_t starvations; /* receives ended by ENOBUFS */
    uint64_t resumed_in_place;
    uint64_t rescheduled;
    bool in_place;
    bool guest; /* between two ticks the host's code runs in this thread, while another one waits */
    PyFrameObject
        *caller;  /* borrowed: the frame that has called wait() or process(), if a step has asked for it; else NULL */
    bool running; /* in wait() or process(): they do not nest */
    bool closed;
};

extern PyTypeObject gt_proactor_type;
void gt_proactor_ready(gt_proactor *proactor, gt_waiter *waiter); /* its task is to be resumed */
gt_waiter *gt_proactor_pop_ready(gt_proactor *proactor);          /* the caller's reference, or NULL */
void gt_proactor_link_wanting(gt_proactor *proactor, gt_stream *stream);
void gt_proactor_link_starved(gt_proactor *proactor, gt_stream *stream);
void gt_proactor_wake_thread(const gt_proactor *proactor); /* from another thread: end the wait, there is work */
void gt_proactor_wake_guest(const gt_proactor *proactor);  /* something is wanted: end the wait, if nothing else will */
/* A value that no two living threads share.  (To this test Clang is a GCC 4.) */
static inline uintptr_t gt_this_thread(void)
{
#if defined(__x86_64__) && __GNUC__ >= 11
    return (uintptr_t)__builtin_thread_pointer(); /* one instruction, and no call */
#else
    return (uintptr_t)pthread_self();
#endif
}
/* False in another thread than the run's, and in the child of a fork. */
static inline bool gt_proactor_is_in_thread(const gt_proactor *proactor)
{
    const bool forked = proactor->ring && proactor->ring->dead && !proactor->closed;
    return !forked && gt_this_thread() == proactor->own_thread;
}
bool gt_proactor_refuse_thread(const gt_proactor *proactor); /* false, exception set */
static inline bool gt_proactor_check_thread(const gt_proactor *proactor)
{
    return !GT_UNLIKELY(!gt_proactor_is_in_thread(proactor)) || gt_proactor_refuse_thread(proactor);
}
/* Something is wanted for which the ring had no SQE. */
static inline bool gt_proactor_is_held_up(const gt_proactor *proactor)
{
    return proactor->wanting_first || proactor->wanting_sockets || proactor->ring->delayed_count > 0;
}
int gt_proactor_look_at_clock(gt_proactor *proactor); /* sets `now`; -1: exception set */
int64_t gt_monotonic_ns(void);

#define GT_ANSWERS_UNTIMED 3U
bool gt_proactor_check_slice(gt_proactor *proactor);
static inline void gt_proactor_begin_slice(gt_proactor *proactor)
{
    proactor->answers_left = GT_ANSWERS_UNTIMED;
    proactor->answers_timed = 0;
}
/* Before a call answers from memory: whether other tasks are to have a turn first, which begins a new one. */
static inline bool gt_proactor_turn_is_over(gt_proactor *proactor)
{
    return GT_UNLIKELY(--proactor->answers_left == 0) && gt_proactor_check_slice(proactor);
}
/* Resume the task that was parked by this waiter, which has been taken out of it. */
int gt_proactor_wake(gt_proactor *proactor, PyObject *task, gt_waiter *waiter, bool in_place);

/* --- reaping.c: what the proactor does once a tick --- */

void gt_proactor_prepare(gt_proactor *proactor);          /* what the streams on the list want */
bool gt_proactor_check_idle(const gt_proactor *proactor); /* false: exception set */
bool gt_proactor_check_open(const gt_proactor *proactor); /* false: exception set */
PyObject *gt_proactor_wait(gt_proactor *self, PyObject *timeout);
PyObject *gt_proactor_process(gt_proactor *self, PyObject *ignored);

/* --- socket.c: what the proactor does with the sockets of datagram endpoints --- */

void gt_sockets_prepare(gt_proactor *proactor);
bool gt_socket_complete(struct gt_socket *socket, const struct io_uring_cqe *cqe); /* true: news for the program */
void gt_sockets_detach(gt_proactor *proactor);                                     /* close them all */
void gt_sockets_abandon(gt_proactor *proactor); /* the same without the ring; they stay until it is closed */
void gt_sockets_free(gt_proactor *proactor, bool leak);
void gt_sockets_forget(gt_proactor *proactor);

#endif
