/* parking_lot.h: what lock.c needs of parking_lot.c. */
#ifndef GAIN_TRIO_PARKING_LOT_H
#define GAIN_TRIO_PARKING_LOT_H

#include "wait.h"

PyObject *tc_lot_abort(tc_wait *self, PyObject *raise_cancel);
/* The number of tasks in it; -1 without an exception if it is no parking lot. */
Py_ssize_t tc_lot_length(PyObject *lot);
/* Park the task.  What to await; NULL: exception set, or none, and then Trio has to do it. */
PyObject *tc_lot_park(const tc_wait_kind *kind, PyObject *owner, PyObject *lot, PyObject *task);
/* Wake the first of the tasks, of which there is at least one: that task, owned; NULL: exception set. */
PyObject *tc_lot_wake(PyObject *lot);

#endif
