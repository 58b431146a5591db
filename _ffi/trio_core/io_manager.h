/* io_manager.h: what is asked of gain_trio's I/O manager. */
#ifndef GAIN_TRIO_CORE_IO_MANAGER_H
#define GAIN_TRIO_CORE_IO_MANAGER_H

#include "core.h"

bool tc_ring_is_manager(PyObject *manager); /* that of set_manager() */
/* Wait until the timeout at most, and wake the tasks.  0; 1: the wait has raised, -1: the rest has; exception set for both. */
int tc_ring_tick(PyObject *manager, PyObject *timeout);
/* What a task awaits until the descriptor is ready; NULL: exception set.  `is_socket`: a system call has just said that it is. */
PyObject *tc_ring_wait(PyObject *manager, int descriptor, bool writes, bool is_socket);

#endif
