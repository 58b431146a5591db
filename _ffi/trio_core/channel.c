/* channel.c: sending to a memory channel, and receiving from one.
 *
 * Stands for, in trio/_channel.py:
 *     MemorySendChannel.send, with MemorySendChannel.send_nowait
 *     MemoryReceiveChannel.receive, with MemoryReceiveChannel.receive_nowait
 * and in trio/_abc.py:
 *     ReceiveChannel.__anext__    of a MemoryReceiveChannel
 *
 * What raises (a closed end, no receiver left, the end of the channel, WouldBlock) is Trio's to raise; so is a cancelled call.
 */
#include "wait.h"

/* An end of a channel and what it shares with the others, owned. */
typedef struct {
    PyObject *state, *tasks;
} channel_end;

static void release_end(channel_end *end)
{
    Py_CLEAR(end->state);
    Py_CLEAR(end->tasks);
}

static bool is_state(PyObject *state)
{
    return Py_IS_TYPE(state, tc_core.channel_state_type) &&
           Py_IS_TYPE(tc_get(tc_core.channel.data, state), tc_core.deque_type) &&
           PyODict_CheckExact(tc_get(tc_core.channel.send_tasks, state)) &&
           PyODict_CheckExact(tc_get(tc_core.channel.receive_tasks, state));
}

/* The end of an open channel; false: Trio has to look at it, and there is no exception. */
static bool open_end(PyObject *channel, PyTypeObject *type, channel_end *end)
{
    end->state = end->tasks = NULL;
    if (!Py_IS_TYPE(channel, type))
        return false;
    PyObject *closed = PyObject_GetAttr(channel, tc_names._closed);
    Py_XDECREF(closed);
    if (closed == Py_False) {
        end->state = PyObject_GetAttr(channel, tc_names._state);
        end->tasks = end->state ? PyObject_GetAttr(channel, tc_names._tasks) : NULL;
        if (end->tasks && PySet_Check(end->tasks) && is_state(end->state))
            return true;
    }
    PyErr_Clear();
    release_end(end);
    return false;
}

static Py_ssize_t waiting_in(tc_slot slot, PyObject *state) { return PyODict_SIZE(tc_get(slot, state)); }

static bool is_positive(PyObject *number)
{
    Py_ssize_t value = PyLong_CheckExact(number) ? PyLong_AsSsize_t(number) : -1;
    PyErr_Clear();
    return value > 0;
}

/* The first task that waits at the other end, and its value, both owned: it is in no queue any more.  0 or -1 */
static int take_waiter(tc_slot slot, PyObject *state, PyObject **task, PyObject **value)
{
    PyObject *queue = Py_NewRef(tc_get(slot, state));
    int result = tc_pop_first(queue, task, value);
    Py_DECREF(queue);
    if (result < 0)
        return -1;
    PyObject *channel = NULL, *tasks = NULL;
    if (Py_IS_TYPE(*task, tc_core.task_type)) {
        channel = Py_NewRef(tc_get(tc_core.task.custom_sleep_data, *task));
        tasks = PyObject_GetAttr(channel, tc_names._tasks);
    } else {
        PyErr_SetString(PyExc_TypeError, "what waits at a channel is not a Trio task");
    }
    result = tasks ? tc_remove(tasks, *task) : -1;
    Py_XDECREF(tasks);
    Py_XDECREF(channel);
    if (result < 0) {
        Py_CLEAR(*task);
        Py_CLEAR(*value);
    }
    return result;
}

static Py_ssize_t buffered(PyObject *state) { return PyObject_Size(tc_get(tc_core.channel.data, state)); }

/* Put the task in both queues: the end's and that of all its clones.  What to await; NULL: exception set. */
static PyObject *park(const tc_wait_kind *kind, PyObject *channel, channel_end *end, tc_slot slot, PyObject *value)
{
    PyObject *task = tc_current_task();
    if (!task)
        return NULL;
    if (PySet_Add(end->tasks, task) < 0)
        return NULL;
    PyObject *queue = Py_NewRef(tc_get(slot, end->state)), *wait = NULL;
    if (PyObject_SetItem(queue, task, value) == 0) {
        tc_set(tc_core.task.custom_sleep_data, task, channel);
        wait = tc_wait_park(kind, channel, task);
        if (!wait) {
            tc_set(tc_core.task.custom_sleep_data, task, Py_None);
            tc_wait_withdraw(queue, task);
        }
    }
    if (!wait)
        tc_wait_withdraw(end->tasks, task);
    Py_DECREF(queue);
    return wait;
}

/* The cancel point of checkpoint_if_cancelled(), for statistics: it stays what it was if there is no memory for the number. */
static PyObject *count_cancel_point(PyObject *wait)
{
    PyObject *task = wait ? tc_current_task() : NULL;
    if (task && tc_add(tc_core.task.cancel_points, task, 1) < 0)
        PyErr_Clear();
    return wait;
}

static PyObject *abort_wait(tc_wait *self, tc_slot slot)
{
    PyObject *tasks = PyObject_GetAttr(self->owner, tc_names._tasks);
    PyObject *state = tasks ? PyObject_GetAttr(self->owner, tc_names._state) : NULL;
    PyObject *result = NULL;
    if (state && !is_state(state))
        PyErr_SetString(PyExc_TypeError, "a channel has lost its state");
    else if (state && tc_remove(tasks, self->task) == 0)
        result = tc_wait_leave_dict(tc_get(slot, state), self->task);
    Py_XDECREF(tasks);
    Py_XDECREF(state);
    return result;
}

/* --- send --- */

static PyObject *abort_send(tc_wait *self, PyObject *Py_UNUSED(raise_cancel))
{
    return abort_wait(self, tc_core.channel.send_tasks);
}

static const tc_wait_kind sending = {.abort = abort_send};

/* Is there room for one more in the buffer?  false, too, for a size that Trio has to look at. */
static bool has_room(PyObject *state)
{
    PyObject *limit = tc_get(tc_core.channel.max_buffer_size, state);
    if (limit == tc_core.infinity)
        return true;
    Py_ssize_t room = PyLong_CheckExact(limit) ? PyLong_AsSsize_t(limit) : -1;
    PyErr_Clear();
    return buffered(state) < room;
}

static int hand_over(PyObject *state, PyObject *value)
{
    PyObject *outcome = tc_value(value), *task, *nothing;
    if (!outcome || take_waiter(tc_core.channel.receive_tasks, state, &task, &nothing) < 0) {
        Py_XDECREF(outcome);
        return -1;
    }
    int result = tc_wake(task, outcome);
    Py_DECREF(task);
    Py_DECREF(nothing);
    Py_DECREF(outcome);
    return result;
}

static int store(PyObject *state, PyObject *value)
{
    PyObject *peak = tc_core.channel.peak >= 0 ? tc_get(tc_core.channel.peak, state) : NULL, *number = NULL;
    if (peak) { /* Trio counts it since 0.34 */
        Py_ssize_t most = PyLong_CheckExact(peak) ? PyLong_AsSsize_t(peak) : -1, count = buffered(state) + 1;
        number = count > most ? PyLong_FromSsize_t(count) : NULL;
    }
    if (PyErr_Occurred() || tc_append(tc_get(tc_core.channel.data, state), value) < 0) {
        Py_XDECREF(number);
        return -1;
    }
    if (number)
        tc_give(tc_core.channel.peak, state, number);
    return 0;
}

/* 1: it is sent, 0: it would block, or Trio has to raise, -1: exception set */
static int send_now(channel_end *end, PyObject *value)
{
    if (!is_positive(tc_get(tc_core.channel.open_receivers, end->state)))
        return 0;
    if (waiting_in(tc_core.channel.receive_tasks, end->state) > 0)
        return buffered(end->state) > 0 ? 0 : hand_over(end->state, value) < 0 ? -1 : 1;
    return !has_room(end->state) ? 0 : store(end->state, value) < 0 ? -1 : 1;
}

/* A whole number that leaves no room, with a receiver somewhere: the sender has to wait. */
static bool send_waits(PyObject *state)
{
    return is_positive(tc_get(tc_core.channel.open_receivers, state)) &&
           PyLong_CheckExact(tc_get(tc_core.channel.max_buffer_size, state)) &&
           waiting_in(tc_core.channel.receive_tasks, state) == 0 && !has_room(state);
}

static PyObject *send(PyObject *channel, channel_end *end, PyObject *value)
{
    if (send_waits(end->state))
        return park(&sending, channel, end, tc_core.channel.send_tasks, value);
    PyObject *wait = tc_wait_pass(&sending, NULL, Py_None);
    int sent = wait ? send_now(end, value) : -1;
    if (sent <= 0)
        Py_CLEAR(wait);
    return wait;
}

/* send(channel, value): what to await, or None for Trio to do it. */
PyObject *tc_channel_send(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    channel_end end;
    if (count != 2 || !Py_IS_TYPE(arguments[0], tc_core.send_channel_type) || !tc_intact(TC_channels) ||
        !tc_is_own(arguments[0], tc_names.send_nowait, tc_core.put_nowait_method))
        Py_RETURN_NONE;
    if (!tc_free_task() || !open_end(arguments[0], tc_core.send_channel_type, &end))
        Py_RETURN_NONE;
    PyObject *wait = count_cancel_point(send(arguments[0], &end, arguments[1]));
    release_end(&end);
    return wait || PyErr_Occurred() ? wait : Py_NewRef(Py_None);
}

/* --- receive --- */

static PyObject *abort_receive(tc_wait *self, PyObject *Py_UNUSED(raise_cancel))
{
    return abort_wait(self, tc_core.channel.receive_tasks);
}

static PyObject *finish_receive(tc_wait *Py_UNUSED(self), PyObject *result) { return result; }

static PyObject *finish_iteration(tc_wait *Py_UNUSED(self), PyObject *result)
{
    if (!result && PyErr_ExceptionMatches(tc_core.end_of_channel)) {
        PyObject *end = gt_take_exception(), *stop = PyObject_CallNoArgs(PyExc_StopAsyncIteration);
        if (stop) { /* raise StopAsyncIteration from None */
            PyException_SetContext(stop, end);
            PyException_SetCause(stop, NULL);
            gt_restore_exception(stop);
        } else {
            Py_DECREF(end);
        }
    }
    return result;
}

static const tc_wait_kind receiving = {.abort = abort_receive, .finish = finish_receive},
                          iterating = {.abort = abort_receive, .finish = finish_iteration};

/* A value that is there, owned; NULL: exception set, or none, and then it would block or Trio has to raise. */
static PyObject *receive_now(channel_end *end)
{
    PyObject *data = Py_NewRef(tc_get(tc_core.channel.data, end->state)), *received = NULL;
    int result = 0;
    if (waiting_in(tc_core.channel.send_tasks, end->state) > 0) {
        PyObject *task, *value;
        result = take_waiter(tc_core.channel.send_tasks, end->state, &task, &value);
        if (result == 0) {
            result = tc_wake(task, NULL);
            if (result == 0)
                result = tc_append(data, value);
            Py_DECREF(task);
            Py_DECREF(value);
        }
    }
    if (result == 0 && PyObject_Size(data) > 0)
        received = tc_core.deque_popleft ? tc_core.deque_popleft(data, NULL)
                                         : PyObject_CallMethodNoArgs(data, tc_names.popleft);
    Py_DECREF(data);
    return received;
}

static PyObject *receive(PyObject *channel, channel_end *end, const tc_wait_kind *kind)
{
    if (waiting_in(tc_core.channel.send_tasks, end->state) == 0 && buffered(end->state) == 0) {
        if (!is_positive(tc_get(tc_core.channel.open_senders, end->state)))
            return NULL;
        return park(kind, channel, end, tc_core.channel.receive_tasks, Py_None);
    }
    /* Made before the value is taken out, so that it is not lost for want of memory. */
    PyObject *wait = tc_wait_pass(kind, NULL, Py_None);
    PyObject *value = wait ? receive_now(end) : NULL;
    if (value)
        Py_SETREF(((tc_wait *)wait)->value, value);
    else
        Py_CLEAR(wait);
    return wait;
}

static PyObject *begin_receive(PyObject *channel, const tc_wait_kind *kind)
{
    channel_end end;
    if (!Py_IS_TYPE(channel, tc_core.receive_channel_type) || !tc_intact(TC_channels) ||
        !tc_is_own(channel, tc_names.receive_nowait, tc_core.take_nowait_method))
        Py_RETURN_NONE;
    if (!tc_free_task() || !open_end(channel, tc_core.receive_channel_type, &end))
        Py_RETURN_NONE;
    PyObject *wait = count_cancel_point(receive(channel, &end, kind));
    release_end(&end);
    return wait || PyErr_Occurred() ? wait : Py_NewRef(Py_None);
}

/* receive(channel): what to await, or None for Trio to do it. */
PyObject *tc_channel_receive(PyObject *Py_UNUSED(module), PyObject *channel)
{
    return begin_receive(channel, &receiving);
}

/* channel_next(channel): the same for __anext__. */
PyObject *tc_channel_next(PyObject *Py_UNUSED(module), PyObject *channel)
{
    if (!Py_IS_TYPE(channel, tc_core.receive_channel_type) ||
        !tc_is_own(channel, tc_names.receive, tc_core.take_method))
        Py_RETURN_NONE;
    return begin_receive(channel, &iterating);
}
