/* call.h: one engine for everything that `await` drives in the fast path: calls of connections, of datagram endpoints, and
 * waits for readiness.
 *
 *     gt_call (object)      one call: its owner, its argument, its state
 *       ├─ gt_kind          its row in a table: all that differs from other calls
 *       └─ gt_waiter        from parking on: the parked task, what it yields to Trio, and the abort function that Trio calls
 *
 * The engine (call.c) starts, parks and ends a call, whatever it is; waiter.c wakes, stops and cancels its wait.  The rows are
 * in stream_calls.c, datagram_calls.c and poll.c.
 */
#ifndef GAIN_TRIO_CALL_H
#define GAIN_TRIO_CALL_H

#include "../awaitable.h"
#include "../exceptions.h"
#include "likelihood.h"

#include <structmember.h>

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

typedef struct gt_proactor gt_proactor;
typedef struct gt_stream gt_stream;
typedef struct gt_call gt_call;
typedef struct gt_kind gt_kind;
typedef struct gt_waiter gt_waiter;
typedef struct gt_wait_queue gt_wait_queue;

enum gt_call_state {
    GT_CALL_NEW,     /* not driven yet */
    GT_CALL_YIELDED, /* the scheduler has its turn first */
    GT_CALL_PARKED,
    GT_CALL_DELIVERS, /* the callback runs that it delivers to */
    GT_CALL_ANSWERED, /* its answer has yet to be asked for by the coroutine that awaits it */
    GT_CALL_DONE,
};

struct gt_kind {
    const char *name;  /* in the warning of a call that was never awaited */
    const char *owner; /* in messages: what the call belongs to */
    bool
        in_place; /* answers from memory where it can, and its task is resumed in place; else Trio schedules the task */
    bool sends;
    bool
        keeps_deadline; /* of a connection: ends at the deadline of its direction, and on a connection that is closed */
    bool
        needs_satisfied; /* has no answer, nor an error but for what `refuse` and `park` find, unless it is satisfied */
    bool of_connection;  /* its owner is a gt_connection */
    bool between;        /* of a connection: it waits between two messages (between.c) */
    bool watches_sends;  /* of a connection's receiving side: it may be satisfied by what has become of a send */
    bool excludes_sends; /* of a connection: what another task sends meanwhile would lie amidst this call's data */
    /* Before the call begins: -1 with an exception if it cannot.  NULL: it always can. */
    int (*refuse)(const gt_call *call);
    /* Would the answer move no bytes, and be the same however often it is asked for?  NULL: no. */
    bool (*moves_nothing)(const gt_call *call);
    /* Is there a reason to resume the task?  Also asked before the first answer: whether that one will not park. */
    bool (*is_satisfied)(const gt_call *call);
    /* 1 with *result set, 0 when the task has to wait, -1 with an exception. */
    int (*answer)(gt_call *call, PyObject **result);
    /* The task is about to park; `cancelled`: only for Trio to cancel it at once.  -1 with an exception.  NULL: nothing to do. */
    int (*park)(gt_call *call, bool cancelled);
    /* The wait was cancelled or stopped, and the task has yet to run.  NULL: nothing to do. */
    void (*stopped)(gt_call *call);
    /* The call is over, however it ended.  Left out for a connection's call that was answered at once.  Runs no Python code. */
    void (*end)(gt_call *call);
    /* It delivers: a number of bytes, up to a most, is for a callback, and the call begins anew behind that.  This makes a step
     * of it without `coro`, which is the task's and awaits it.  True: it waits again, and *result is what it yields for that.
     * False: `coro` is to be resumed, and gets the answer, if there is one by now.  NULL: it delivers nothing. */
    bool (*deliver)(gt_call *call, PyObject *coro, PyObject **result);
    /* A stream is asked for something while the call is parked, and then no more.  NULL: it is not. */
    void (*ask)(gt_stream *stream, const gt_call *call, bool wanted);
};

typedef union {
    struct sockaddr generic;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
} gt_sockaddr;

struct gt_call {
    PyObject_HEAD
    const gt_kind *kind;
    gt_proactor *proactor; /* borrowed: the owner holds it */
    PyObject *owner;       /* the gt_connection, the gt_endpoint, or for a poll the proactor */
    gt_waiter *waiter;     /* from the first parking on */
    PyObject *data;        /* the argument, if it is bytes; while ANSWERED, what the call returns or raises */
    Py_buffer *view;       /* the argument, if it is any other buffer, else NULL: it is large, and seldom used */
    PyObject
        *parts; /* the same of several: a tuple of bytes and memoryviews, of which `data` or `view` is the current one;
                * of a call that delivers: the callback, its first argument, and what learns from a slow one */
    uint8_t state; /* enum gt_call_state */
    bool is_finalized;
    bool raises;        /* the answer, while ANSWERED */
    bool late;          /* of a connection, while PARKED: its task was resumed because its deadline has passed */
    bool alone;         /* of a call that delivers: its steps are made without the coroutine that awaits it */
    uint8_t deliveries; /* of such a call: before it is known whether they are */
    union {
        struct {
            size_t offset; /* a send: how much of the current part has been queued */
            Py_ssize_t next_part;
            size_t before;       /* a send: bytes in the parts before the current one */
            size_t length;       /* a send: bytes in all */
            size_t max;          /* a receive: at most; a fill: at least; a wait for a change: what it watches */
            size_t most;         /* a call that delivers: the most bytes that its callback gets */
            size_t most_untimed; /* of them: a callback that gets more is timed */
        };
        struct {
            gt_wait_queue *queue; /* of the endpoint; NULL: the call has not waited in it yet */
            gt_call *previous, *next;
            gt_sockaddr to;
            bool to_reached; /* the address is one that datagrams go to */
            bool listed;
            bool notified; /* out of the queue, and its task has yet to run */
        } datagram;
        struct {
            gt_call *previous, *next; /* on the proactor's list while pending */
            uint64_t key;
            uint32_t events;
            int fd;
            int result;     /* of the poll: events, or a negative errno */
            bool pending;   /* the operation is in flight and its completion is waited for */
            bool again;     /* it has been armed again, as a multishot poll */
            bool is_socket; /* a system call has just said so */
        } poll;
    };
};

/* A parked task, and the abort function that Trio calls to cancel it.  The proactor keeps those that no call has. */
struct gt_waiter {
    PyObject_HEAD
    gt_call *call;       /* borrowed, while the call has it */
    PyObject *task;      /* NULL: not parked */
    PyObject *trap;      /* WaitTaskRescheduled(self): a cycle, which is opened where a waiter is dropped */
    PyObject *succeeded; /* trio.lowlevel.Abort.SUCCEEDED */
    gt_waiter
        *next; /* on the proactor's list of waiters to wake, which owns a reference, or on the one of spare ones */
    const void *frame; /* where the frame lay that awaited the call: only for a prefetch */
    bool is_ready;     /* on the first of these lists */
};

extern PyTypeObject gt_call_type;
extern PyTypeObject gt_waiter_type;
gt_call *gt_call_new(const gt_kind *kind, gt_proactor *proactor, PyObject *owner);
bool gt_call_set_view(gt_call *call, PyObject *buffer, int flags); /* false: exception set */
void gt_call_release(gt_call *call);                               /* what it holds of its argument */
gt_call *gt_call_withdraw(gt_call *call);      /* it could not be made; takes the caller's reference.  NULL */
int gt_call_raise_closed(const gt_call *call); /* -1 */
int gt_raise_os_error(int error);              /* -1 */
PyObject *gt_raise_broken(gt_proactor *proactor, int error); /* NULL */
#define GT_UNTIMED INT64_MAX
/* Call back with a number of bytes; `parts` begins as in a call that delivers.  0: it took less than `slice_ns`; 1: it took longer,
 * and what learns from that has done so; -1: exception set. */
int gt_call_back(PyObject *parts, PyObject *count, int64_t slice_ns);
bool gt_call_deliver(gt_call *call, PyObject **result); /* as `deliver` of the kind, whatever the coroutine is */

/* --- waiter.c --- */

gt_waiter *gt_waiter_take(gt_proactor *proactor);                   /* for a call; NULL: exception set */
void gt_waiter_give_back(gt_proactor *proactor, gt_waiter *waiter); /* the call is over; takes its reference */
PyObject *gt_call_stop(gt_call *call); /* stop waiting: the task that waited, now the caller's reference, or NULL */
int gt_waiter_wake(gt_waiter *waiter, bool in_place); /* the task that is parked, if there is one */
int gt_waiter_resume(gt_waiter *waiter); /* the same if its call is satisfied, in the way that its kind wants */
void gt_waiters_drop_spare(gt_proactor *proactor);

#endif
