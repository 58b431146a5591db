/* epoll.c: waiting for descriptors with Trio's own I/O manager on Linux.
 *
 * Stands for, in trio/_core/_io_epoll.py:
 *     EpollIOManager.get_events and process_events    in a tick that tick.c makes
 *     EpollIOManager._update_registrations            while epoll_ctl(2) succeeds
 *     EpollIOManager._epoll_wait                      of a number or a socket.socket
 *
 * The table of descriptors, the entries in it and the epoll object are Trio's own, and the system calls are the same ones in
 * the same order, so Trio's code and this may take turns, and notify_closing() and statistics() stay Trio's.
 *
 *     EpollIOManager                              here
 *     -----------------------------------------   ------------------------------------------------------------------
 *     self._epoll.poll(timeout, max_events)       epoll_wait(2); a look (timeout 0) keeps the GIL, because it does not wait
 *     self._epoll.modify(), .register()           epoll_ctl(2); if both fail, Trio's function does it again, and raises
 *     _core.reschedule(task)                      tc_wake()
 *     self._force_wakeup.drain()                  called by name
 *     _epoll_wait: what comes before the trap     begin_wait(), when the wait is driven: no code of the program, and no
 *                                                 handler of a signal, can come between it and the trap
 *     its abort()                                 abort_wait()
 */
#include "epoll.h"
#include "wait.h"

#include <errno.h>
#include <math.h>
#include <sys/epoll.h>
#include <time.h>

/* select.epoll begins with its descriptor, which is negative when it is closed; tc_epoll_check() looks whether it does. */
static int descriptor_of(PyObject *epoll) { return *(int *)((char *)epoll + sizeof(PyObject)); }

int tc_epoll_check(PyObject *epoll)
{
    PyObject *number = tc_core.epoll_type && Py_IS_TYPE(epoll, tc_core.epoll_type)
                           ? PyObject_CallMethodNoArgs(epoll, tc_names.fileno)
                           : NULL;
    long descriptor = number ? PyLong_AsLong(number) : -1;
    Py_XDECREF(number);
    if (PyErr_Occurred())
        return -1;
    if (number && descriptor == descriptor_of(epoll))
        return 0;
    PyErr_SetString(PyExc_TypeError, "Python's select.epoll is not laid out as it was");
    return -1;
}

bool tc_epoll_is_manager(PyObject *manager)
{
    if (!Py_IS_TYPE(manager, tc_core.epoll_manager_type) || !tc_intact(TC_epoll))
        return false;
    PyObject *epoll = tc_get(tc_core.epoll_manager.epoll, manager);
    return Py_IS_TYPE(epoll, tc_core.epoll_type) && descriptor_of(epoll) >= 0 &&
           PyDict_Check(tc_get(tc_core.epoll_manager.registered, manager));
}

/* --- registrations --- */

/* self._registered[fd]: a new reference; NULL: exception set. */
static PyObject *find_entry(PyObject *manager, PyObject *number)
{
    PyObject *table = Py_NewRef(tc_get(tc_core.epoll_manager.registered, manager));
    PyObject *entry = PyObject_GetItem(table, number);
    Py_DECREF(table);
    if (entry && !Py_IS_TYPE(entry, tc_core.epoll_waiters_type)) {
        PyErr_SetString(PyExc_TypeError, "the entry of a descriptor in Trio's I/O manager is not what it was");
        Py_CLEAR(entry);
    }
    return entry;
}

/* epoll_ctl(2) as Trio makes it: a descriptor that was waited for before is known to the kernel. */
static bool register_descriptor(PyObject *manager, int descriptor, uint32_t wanted)
{
    int epoll = descriptor_of(tc_get(tc_core.epoll_manager.epoll, manager));
    struct epoll_event event = {.events = wanted | EPOLLONESHOT, .data.fd = descriptor};
    return epoll_ctl(epoll, EPOLL_CTL_MOD, descriptor, &event) == 0 ||
           epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event) == 0;
}

static int update_entry(PyObject *manager, PyObject *number, int descriptor, PyObject *entry)
{
    uint32_t wanted = 0;
    if (tc_get(tc_core.epoll_waiters.read_task, entry) != Py_None)
        wanted |= EPOLLIN;
    if (tc_get(tc_core.epoll_waiters.write_task, entry) != Py_None)
        wanted |= EPOLLOUT;
    long current = PyLong_AsLong(tc_get(tc_core.epoll_waiters.current_flags, entry));
    if (current == -1 && PyErr_Occurred())
        return -1;
    if ((long)wanted != current) {
        if (!register_descriptor(manager, descriptor, wanted))
            return tc_drop(PyObject_CallMethodOneArg(manager, tc_names._update_registrations, number));
        tc_give(tc_core.epoll_waiters.current_flags, entry,
                PyLong_FromLong((long)wanted)); /* Python keeps small ones */
    }
    return wanted ? 0 : PyDict_DelItem(tc_get(tc_core.epoll_manager.registered, manager), number);
}

/* _update_registrations().  0 or -1 */
static int update(PyObject *manager, PyObject *number, int descriptor)
{
    PyObject *entry = find_entry(manager, number);
    if (!entry)
        return -1;
    int result = update_entry(manager, number, descriptor, entry);
    Py_DECREF(entry);
    return result;
}

/* --- a tick --- */

#define EVENTS_ON_THE_STACK 64

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* As select.epoll.poll() does it.  How many events there are; -1: exception set. */
static int poll_events(int epoll, struct epoll_event *events, int capacity, double timeout)
{
    int64_t left = (int64_t)ceil(timeout * 1e9), end = left > 0 ? now_ns() + left : 0;
    for (;;) {
        int count, error, milliseconds = (int)((left + 999999) / 1000000);
        if (left == 0) {
            count = epoll_wait(epoll, events, capacity, 0);
            error = errno;
        } else {
            Py_BEGIN_ALLOW_THREADS;
            count = epoll_wait(epoll, events, capacity, milliseconds);
            error = errno;
            Py_END_ALLOW_THREADS;
        }
        if (count >= 0)
            return count;
        if (error != EINTR) {
            errno = error;
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        if (PyErr_CheckSignals() < 0)
            return -1;
        if (left > 0 && (left = end - now_ns()) <= 0)
            return 0;
    }
}

/* Wake the task that waits in that direction, if there is one. */
static int wake_waiter(PyObject *entry, tc_slot slot)
{
    PyObject *task = tc_get(slot, entry);
    if (task == Py_None)
        return 0;
    Py_INCREF(task);
    int result = tc_wake(task, NULL);
    Py_DECREF(task);
    if (result == 0)
        tc_set(slot, entry, Py_None);
    return result;
}

static int process_event(PyObject *manager, int descriptor, uint32_t flags)
{
    PyObject *number = PyLong_FromLong(descriptor), *entry = number ? find_entry(manager, number) : NULL;
    int result = entry ? 0 : -1;
    if (result == 0) {
        tc_give(tc_core.epoll_waiters.current_flags, entry, PyLong_FromLong(0));
        if (flags & ~(uint32_t)EPOLLIN)
            result = wake_waiter(entry, tc_core.epoll_waiters.write_task);
        if (result == 0 && (flags & ~(uint32_t)EPOLLOUT))
            result = wake_waiter(entry, tc_core.epoll_waiters.read_task);
        Py_DECREF(entry);
    }
    if (result == 0)
        result = update(manager, number, descriptor);
    Py_XDECREF(number);
    return result;
}

static int process_events(PyObject *manager, const struct epoll_event *events, int count)
{
    for (int i = 0; i < count; i++) {
        PyObject *wakeup = tc_get(tc_core.epoll_manager.force_wakeup_fd, manager);
        long number = wakeup == Py_None ? -1 : PyLong_AsLong(wakeup);
        if (number == -1 && PyErr_Occurred())
            return -1;
        int result;
        if (events[i].data.fd == number)
            result =
                tc_drop(PyObject_CallMethodNoArgs(tc_get(tc_core.epoll_manager.force_wakeup, manager), tc_names.drain));
        else
            result = process_event(manager, events[i].data.fd, events[i].events);
        if (result < 0)
            return -1;
    }
    return 0;
}

int tc_epoll_tick(PyObject *manager, double timeout)
{
    struct epoll_event few[EVENTS_ON_THE_STACK], *events = few;
    Py_ssize_t known = PyDict_Size(tc_get(tc_core.epoll_manager.registered, manager));
    int capacity = known < 1 ? 1 : known > INT_MAX / 16 ? INT_MAX / 16 : (int)known;
    if (capacity > EVENTS_ON_THE_STACK) {
        events = PyMem_New(struct epoll_event, (size_t)capacity);
        if (!events) {
            PyErr_NoMemory();
            return 1;
        }
    }
    int epoll = descriptor_of(tc_get(tc_core.epoll_manager.epoll, manager));
    int count = poll_events(epoll, events, capacity, timeout);
    int result = count < 0 ? 1 : process_events(manager, events, count);
    if (events != few)
        PyMem_Free(events);
    return result;
}

/* --- a task that waits --- */

static tc_slot slot_of(bool writes)
{
    return writes ? tc_core.epoll_waiters.write_task : tc_core.epoll_waiters.read_task;
}

/* The manager of the run whose task waits, borrowed; NULL: exception set. */
static PyObject *manager_of(tc_wait *self)
{
    PyObject *manager = tc_get(tc_core.runner.io_manager, tc_get(tc_core.task.runner, self->task));
    if (tc_epoll_is_manager(manager))
        return manager;
    PyErr_SetString(PyExc_RuntimeError, "the I/O manager of this run is closed");
    return NULL;
}

static int begin_wait(tc_wait *self, bool writes)
{
    PyObject *manager = manager_of(self);
    PyObject *number = manager ? PyLong_FromLong(self->descriptor) : NULL;
    PyObject *entry = number ? find_entry(manager, number) : NULL;
    int result = -1;
    if (entry && tc_get(slot_of(writes), entry) != Py_None) {
        PyErr_SetString(tc_core.busy_resource_error, "another task is already reading / writing this fd");
    } else if (entry) {
        tc_set(slot_of(writes), entry, self->task);
        self->owner = Py_NewRef(entry);
        result = update(manager, number, self->descriptor);
        if (result < 0 && tc_get(slot_of(writes), entry) == self->task) /* Trio's function has not come so far */
            tc_set(slot_of(writes), entry, Py_None);
    }
    Py_XDECREF(entry);
    Py_XDECREF(number);
    return result;
}

static PyObject *abort_wait(tc_wait *self, bool writes)
{
    PyObject *manager = self->owner ? manager_of(self) : NULL;
    PyObject *number = manager ? PyLong_FromLong(self->descriptor) : NULL;
    if (!self->owner)
        PyErr_SetString(PyExc_RuntimeError, "a wait that has not begun is aborted");
    if (!number)
        return NULL;
    tc_set(slot_of(writes), self->owner, Py_None);
    int result = update(manager, number, self->descriptor);
    Py_DECREF(number);
    return result < 0 ? NULL : Py_NewRef(tc_core.abort_succeeded);
}

static int begin_reading(tc_wait *self) { return begin_wait(self, false); }

static int begin_writing(tc_wait *self) { return begin_wait(self, true); }

static PyObject *abort_reading(tc_wait *self, PyObject *Py_UNUSED(raise_cancel)) { return abort_wait(self, false); }

static PyObject *abort_writing(tc_wait *self, PyObject *Py_UNUSED(raise_cancel)) { return abort_wait(self, true); }

static const tc_wait_kind reading = {.abort = abort_reading, .begin = begin_reading},
                          writing = {.abort = abort_writing, .begin = begin_writing};

PyObject *tc_epoll_wait(int descriptor, bool writes, PyObject *task)
{
    PyObject *wait = tc_wait_park(writes ? &writing : &reading, NULL, task);
    if (wait)
        ((tc_wait *)wait)->descriptor = descriptor;
    return wait;
}

/* epoll_wait(manager, file, attribute): what to await, or None for Trio to do it. */
PyObject *tc_epoll_wait_method(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    PyObject *task = count == 3 ? tc_current_task() : NULL;
    if (!task || !tc_epoll_is_manager(arguments[0]) ||
        tc_get(tc_core.runner.io_manager, tc_get(tc_core.task.runner, task)) != arguments[0] ||
        (arguments[2] != tc_names.read_task && arguments[2] != tc_names.write_task))
        Py_RETURN_NONE;
    int overflow = 0;
    long descriptor = -1;
    if (PyLong_CheckExact(arguments[1]))
        descriptor = PyLong_AsLongAndOverflow(arguments[1], &overflow);
    else if (Py_IS_TYPE(arguments[1], tc_core.plain_socket_type))
        descriptor = tc_descriptor_of(arguments[1]);
    if (descriptor < 0 || overflow || descriptor != (int)descriptor)
        Py_RETURN_NONE;
    return tc_epoll_wait((int)descriptor, arguments[2] == tc_names.write_task, task);
}
