/* core.h: Trio's own hot path in C, as gain_trio._trio_core.
 *
 * Each file stands for a part of Trio, which it names at its top:
 *
 *     step.c         the inner loop of unrolled_run, and Runner.reschedule
 *     tick.c         what unrolled_run does between two batches, while nothing is unusual
 *     epoll.c        EpollIOManager: get_events, process_events, _epoll_wait
 *     io_manager.c   the same of gain_trio's own I/O manager
 *     guard.c        whether all of what the others stand for is still there
 *     shortcut.c     the way to them from C, without a frame of the interpreter
 *     checkpoint.c   checkpoint, cancel_shielded_checkpoint, checkpoint_if_cancelled, wait_task_rescheduled
 *     scope.c        CancelScope: __init__, __enter__, __exit__
 *     spawn.c        Runner.spawn_impl, Runner.task_exited
 *     timeout.c      move_on_after
 *     fail_after.c   fail_after
 *     asyncgen.c     AsyncGenerators: the hook of a generator that begins
 *     nursery.c      NurseryManager: __aenter__, __aexit__
 *     parking_lot.c  ParkingLot: park, unpark
 *     lock.c         Lock: acquire, release
 *     event.c        Event: wait, set
 *     channel.c      memory channels: send, receive
 *     socket_call.c  _SocketType: _nonblocking_helper, with
 *     socket_method.c    the methods made of it, and is_readable
 *     socket_attempt.c   the system calls
 *     stream.c       SocketStream: receive_some, send_all, __anext__
 *
 * and each does the ordinary case only.  A function that is called from Trio's own function object (gain_trio._acceleration
 * puts the call there) says with None or False that the case is not ordinary, before it has changed anything; Trio's body,
 * which comes after the call, does it then.  So it is, too, while a program has set a function of its own in the place of one
 * that Trio's body would call.
 *
 * Nothing here knows a run.  `tc_core` has Trio's types, and where their slots lie, which are the process's; what belongs to
 * a run is asked of the run each time.  The current task is asked of Trio's GLOBAL_RUN_CONTEXT, because others set it, too.
 */
#ifndef GAIN_TRIO_CORE_H
#define GAIN_TRIO_CORE_H

#include "../awaitable.h"
#include "../exceptions.h"

#include <structmember.h>

#include <stdbool.h>
#include <stdint.h>

/* How Trio's functions call this module; INTERFACE in _pieces.py is the same. */
#define TC_INTERFACE 5

/* --- Trio's objects: their attributes are slots, at fixed offsets --- */

typedef Py_ssize_t tc_slot;

/* What tc_configure() was given: Trio's types and constants, and where their slots lie. */
typedef struct {
    PyTypeObject *task_type, *runner_type, *scope_type, *status_type, *deadlines_type, *value_type, *socket_type,
        *stream_type, *system_clock_type, *plain_socket_type;
    PyTypeObject *nursery_type, *nursery_manager_type, *lot_type, *lock_type, *fifo_lock_type, *event_type,
        *channel_state_type, *send_channel_type, *receive_channel_type, *deque_type;
    PyObject *error_type, *trap_type, *detach_type, *checkpoint_message, *no_send, *run_context, *infinity;
    PyObject *unusual_yield;           /* (runner, task, message) */
    PyObject *translate;               /* an OSError: the exception that a stream raises for it */
    PyObject *checkpoint_if_cancelled; /* Trio's function */
    PyObject *wait_readable, *wait_writable;
    PyObject *sendto_function;                /* of socket.socket */
    PyObject *receive_method, *send_method;   /* Trio's own _SocketType.recv and send: a program may replace them */
    PyObject *receive_some;                   /* SocketStream.receive_some, likewise */
    PyObject *helper_method, *resolve_method; /* _SocketType._nonblocking_helper and _resolve_address_nocp */
    PyObject *finished_method, *close_method; /* Nursery._child_finished and _check_nursery_closed */
    PyTypeObject *detector_type;              /* ConflictDetector */
    PyObject *run_module;                     /* the __dict__ of trio._core._run */
    PyObject *heappush, *next_counter, *lot_breakers;
    PyObject *ki_key; /* the name of the local variable with which Trio before 0.28 marks frames, or None */
    PyObject *default_receive_size;
    PyTypeObject *manager_type; /* gain_trio's I/O manager, see io_manager.c; NULL for none */
    PyObject *abort_succeeded;  /* Trio's Abort.SUCCEEDED */
    PyObject *nested_method;    /* Nursery._nested_child_finished */
    PyObject *nursery_aborted, *nursery_add, *nursery_error; /* what a nursery does with exceptions; see the seam */
    PyObject *broken_resource_error, *broken_lock;           /* (lock, error): what acquire() raises for it */
    PyObject *acquire_method, *acquire_nowait_method, *release_method; /* of Trio's locks, likewise */
    PyObject *end_of_channel;
    PyObject *take_method, *take_nowait_method;                         /* receive and receive_nowait, likewise */
    PyObject *put_nowait_method;                                        /* send_nowait */
    PyObject *no_arguments, *last_name;                                 /* () and ("last",) */
    PyTypeObject *epoll_manager_type, *epoll_waiters_type, *epoll_type; /* the last one is Python's */
    PyObject *busy_resource_error;
    PyTypeObject *fail_after_type;                     /* what fail_after() returns */
    PyObject *fail_after_function;                     /* the generator function that Trio has for it */
    PyTypeObject *generators_type, *weak_set_type;     /* AsyncGenerators, and Python's WeakSet */
    PyObject *weak_set_defers;                         /* whether one that is iterated over does */
    PyObject *become_plain, *plain_enter, *plain_exit; /* see _fail_after.py */
    struct {
        bool tick, epoll;
    } in; /* the pieces that other pieces make use of: whether they are in */
    PyMethodDef *coroutine_send;
    PyCFunction deque_append, deque_popleft; /* NULL: to be called by name */
    vectorcallfunc plain_vectorcall;         /* of a function of Python */
    Py_ssize_t prune_threshold;
    bool breaks_lots; /* this Trio knows which task breaks which parking lot */
    struct {
        tc_slot parent_nursery, coro, runner, name, context, counter, ki_protected, next_send_fn, next_send, abort_func,
            custom_sleep_data, child_nurseries, eventual_parent_nursery, cancel_points, schedule_points, cancel_status;
    } task;
    struct {
        tc_slot instruments, io_manager, clock, runq, tasks, deadlines, init_task, main_task, main_task_outcome,
            autojump_threshold, is_guest, ki_pending, waiting_for_idle;
    } runner;
    struct {
        tc_slot cancel_status, has_been_entered, registered_deadline, cancel_called, cancelled_caught, cancel_reason,
            relative_deadline, deadline, shield;
    } scope;
    struct {
        tc_slot scope, effectively_cancelled, parent, children, tasks, abandoned;
    } status;
    struct {
        tc_slot heap, active;
    } deadlines;
    struct {
        tc_slot offset;
    } system_clock;
    struct {
        tc_slot epoll, registered, force_wakeup, force_wakeup_fd;
    } epoll_manager;
    struct {
        tc_slot read_task, write_task, current_flags;
    } epoll_waiters;
    struct {
        tc_slot unwrapped, value;
    } value;
    struct {
        tc_slot parked, broken_by;
    } lot;
    struct {
        tc_slot tasks, flag;
    } event;
    struct {
        tc_slot function, arguments, keywords, scope;
    } manager; /* the context manager of fail_after() */
    struct {
        tc_slot alive;
    } generators;
    struct {
        tc_slot max_buffer_size, data, open_senders, open_receivers, send_tasks, receive_tasks, peak;
    } channel;
} tc_core_type;

extern tc_core_type tc_core;
PyObject *tc_configure(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
/* The function of a method without keywords, which may be called as the method is; NULL: it is not such a method. */
PyCFunction tc_function_of(PyTypeObject *type, PyObject *name, int flags);

/* Borrowed; None, too, for a slot that is empty. */
static inline PyObject *tc_get(tc_slot slot, PyObject *object)
{
    PyObject *value = *(PyObject **)((char *)object + slot);
    return value ? value : Py_None;
}

/* Takes the reference to `value`. */
static inline void tc_give(tc_slot slot, PyObject *object, PyObject *value)
{
    PyObject **place = (PyObject **)((char *)object + slot), *old = *place;
    *place = value;
    Py_XDECREF(old);
}

static inline void tc_set(tc_slot slot, PyObject *object, PyObject *value) { tc_give(slot, object, Py_NewRef(value)); }

int tc_append(PyObject *queue, PyObject *item);              /* queue.append(item), of a deque.  0 or -1 */
int tc_add(tc_slot slot, PyObject *object, long difference); /* to a number; -1: exception set */

/* 1 or 0; -1: exception set */
static inline int tc_is_true(PyObject *value)
{
    return value == Py_True ? 1 : value == Py_False || value == Py_None ? 0 : PyObject_IsTrue(value);
}

static inline int tc_drop(PyObject *result)
{
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* --- names.c --- */

/* clang-format lays such a list out anew each time that it runs. */
/* clang-format off */
#define TC_NAMES(X) \
    X(task) X(runner) X(data) X(call) X(send) X(append) X(clear) X(random) X(unwrap) X(close) X(abort_func) \
    X(final_outcome) X(task_exited) X(task_scheduled) X(task_spawned) X(before_task_step) X(after_task_step) \
    X(force_guest_tick_asap) X(_attempt_delivery_of_pending_ki) X(_attempt_delivery_of_any_pending_cancel) \
    X(current_time) X(expire) X(next_deadline) X(get_events) X(process_events) X(_ALLOW_DETERMINISTIC_SCHEDULING) \
    X(_r) X(_sock) X(_did_shutdown_SHUT_WR) X(socket) X(_send_conflict_detector) X(_held) X(recv) X(receive_some) \
    X(fileno) X(poll) X(_closed) X(_children) X(_cancel_status) X(_check_nursery_closed) X(_nested_child_running) \
    X(_pending_starts) X(cr_frame) X(f_locals) X(__dict__) X(throw) \
    X(_state) X(_tasks) X(popitem) X(popleft) X(_owner) X(_lot) X(_scope) X(_nursery) X(strict_exception_groups) \
    X(_parent_task) X(_strict_exception_groups) X(cancel_scope) X(_pending_excs) X(_parent_waiting_in_aexit) \
    X(reschedule) X(last) X(family) X(acquire) X(acquire_nowait) X(release) X(receive) X(receive_nowait) \
    X(send_nowait) X(perf_counter) X(proactor) X(wait) X(process) X(complete) X(_update_registrations) X(drain) \
    X(read_task) X(write_task) X(_nonblocking_helper) X(_resolve_address_nocp) X(_child_finished) \
    X(_nested_child_finished) X(Value) X(Error) X(relative_deadline) X(deadline) X(shield) \
    X(readers) X(writers) X(_iterating) X(_pending_removals) X(_remove)
/* clang-format on */

typedef struct {
#define X(name) PyObject *name;
    TC_NAMES(X)
#undef X
} tc_names_type;

extern tc_names_type tc_names;
int tc_names_init(void);

/* --- what is in a dict --- */

/* The value of one name, borrowed from the dict, and the version that the dict had then.  No dict has a version that another one
 * had, or that it had before it was changed.  From Python 3.12 on dicts have none that counts. */
typedef struct {
    uint64_t version; /* 0: none */
    PyObject *value;
} tc_item;

static inline void tc_note_item(tc_item *item, PyObject *dict, PyObject *value)
{
#if PY_VERSION_HEX < 0x030c0000
    item->version = ((PyDictObject *)dict)->ma_version_tag;
    item->value = value;
#else
    (void)item, (void)dict, (void)value;
#endif
}

/* As PyDict_GetItemWithError() finds it. */
static inline PyObject *tc_find_item(tc_item *item, PyObject *dict, PyObject *name)
{
#if PY_VERSION_HEX < 0x030c0000
    if (((PyDictObject *)dict)->ma_version_tag == item->version)
        return item->value;
#endif
    PyObject *value = PyDict_GetItemWithError(dict, name);
    if (value)
        tc_note_item(item, dict, value);
    return value;
}

/* --- guard.c --- */

/* clang-format off */
#define TC_PIECE_NAMES(X) \
    X(sockets) X(streams) X(step) X(checkpoints) X(scopes) X(spawning) X(tick) X(timeouts) X(nurseries) X(locks) \
    X(events) X(channels) X(epoll) X(generators) X(readiness) X(outcomes)
/* clang-format on */

enum tc_piece {
#define X(name) TC_##name,
    TC_PIECE_NAMES(X)
#undef X
        TC_PIECES
};

/* Is everything that the piece stands for what it was?  Sets no exception, and runs no code. */
bool tc_intact(enum tc_piece piece);
int tc_guards_init(void); /* once, before any of it; -1: exception set */
PyObject *tc_set_guards(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *tc_is_intact(PyObject *module, PyObject *name);

/* --- shortcut.c --- */

PyObject *tc_set_shortcut(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *tc_has_shortcut(PyObject *module, PyObject *function);
/* Does a debugger, a profiler or a coverage tool want to see a call of this code? */
bool tc_is_watched(PyObject *code);

/* --- run.c: what is asked of a run --- */

PyObject *tc_context(void);      /* borrowed: the __dict__ of GLOBAL_RUN_CONTEXT in this thread; NULL: exception set */
PyObject *tc_current_task(void); /* borrowed; NULL without an exception when there is none, or it is not Trio's */
int tc_set_current_task(PyObject *context, PyObject *task); /* in the dict that tc_context() returns.  0 or -1 */
int tc_is_cancelled(PyObject *task); /* or interrupted: would a checkpoint raise?  -1: exception set */
double tc_now(PyObject *runner);     /* the time of its clock; -1: an exception is set, or not */
/* A number that a method without arguments returns.  -1 with an exception set, and only then an exception is set. */
double tc_ask(PyObject *object, PyObject *method);
PyObject *tc_hooks(PyObject *runner); /* the dict of instruments by hook, owned */
typedef struct {
    PyObject *runner, *instruments, *hooks; /* the first one borrowed */
} tc_batches;
/* Between the two tc_hooks() returns the dict that there was at the first.  0, or -1 without a second one. */
int tc_begin_batches(tc_batches *batches, PyObject *runner);
void tc_end_batches(tc_batches *batches);
int tc_observe(PyObject *runner, PyObject *hooks, PyObject *hook,
               PyObject *task);      /* call instruments, if there are any */
PyObject *tc_value(PyObject *value); /* outcome.Value(value) */
/* What a task is resumed with, unwrapped: a new reference; NULL: exception set. */
PyObject *tc_unwrap(PyObject *message);
/* The same for a Value that was not unwrapped before, while outcomes are intact; NULL without an exception for any other. */
PyObject *tc_unwrap_value(PyObject *message);
/* Has the object still the method that its class had when the acceleration was configured?  Programs replace methods, in a class
 * and in one object.  Sets no exception: false, too, without memory. */
bool tc_is_own(PyObject *object, PyObject *name, PyObject *function);
/* A new object of a class whose attributes are set one by one, as its __init__() does. */
PyObject *tc_new_object(PyTypeObject *type);
/* Trio's WaitTaskRescheduled(abort_func) */
PyObject *tc_trap(PyObject *abort_func);
/* throw() of what is awaited, with the arguments of one's own. */
PyObject *tc_throw_into(PyObject *awaitable, PyObject *const *arguments, Py_ssize_t count);

/* --- the parts --- */

int tc_reschedule(PyObject *runner, PyObject *task, PyObject *next_send); /* 1, 0: Trio has to, -1 */
/* What it leaves in the batch is Trio's to do.  0 or -1 */
int tc_run_batch(const tc_batches *batches, PyObject *batch);
bool tc_check_batch(PyObject *const *arguments, Py_ssize_t count);

PyObject *tc_step_reschedule(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *tc_step_batch(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *tc_tick_batch(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

PyObject *tc_epoll_wait_method(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

PyObject *tc_checkpoint(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *tc_shielded_checkpoint(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *tc_pass_checkpoint(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *tc_wait_rescheduled(PyObject *module, PyObject *abort_func);

PyObject *tc_scope_init(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *tc_scope_enter(PyObject *module, PyObject *scope);
PyObject *tc_scope_exit(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
/* Enter a scope, or leave it without an exception.  1; 0: Trio has to do it; -1: exception set */
int tc_scope_open(PyObject *scope);
int tc_scope_close(PyObject *scope);

PyObject *tc_move_on_after(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *tc_fail_after(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
int tc_fail_after_init(void); /* once, when its type is known; -1: exception set */

PyObject *tc_first_iteration(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

PyObject *tc_nursery_enter(PyObject *module, PyObject *manager);
PyObject *tc_nursery_exit(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

extern PyTypeObject tc_point_type;
extern PyTypeObject tc_wait_type;
PyObject *tc_park(PyObject *module, PyObject *lot);
PyObject *tc_unpark(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *tc_acquire(PyObject *module, PyObject *lock);
PyObject *tc_release(PyObject *module, PyObject *lock);
PyObject *tc_lock_enter(PyObject *module, PyObject *lock);
PyObject *tc_lock_exit(PyObject *module, PyObject *lock);
PyObject *tc_event_wait(PyObject *module, PyObject *event);
PyObject *tc_event_set(PyObject *module, PyObject *event);
PyObject *tc_channel_send(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *tc_channel_receive(PyObject *module, PyObject *channel);
PyObject *tc_channel_next(PyObject *module, PyObject *channel);

int tc_activate_status(PyObject *task,
                       PyObject *status); /* Task._activate_cancel_status of a task that is not parked */
PyObject *tc_spawn(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *tc_start_soon(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *tc_exit(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

enum tc_call { TC_RECV, TC_RECV_INTO, TC_SEND, TC_RECVFROM, TC_SENDTO, TC_OTHER };
extern PyTypeObject tc_socket_call_type, tc_socket_method_type;
PyObject *tc_socket_sendto(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *tc_socket_readable(PyObject *module, PyObject *socket);
PyObject *tc_socket_helper(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
int tc_sockets_check(PyObject *socket); /* -1: exception set */
int tc_descriptor_of(PyObject *sock);   /* of a socket.socket */
PyObject *tc_receive_some(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *tc_send_all(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *tc_stream_next(PyObject *module, PyObject *stream);

#endif
