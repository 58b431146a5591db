/* epoll.h: Trio's own I/O manager on Linux. */
#ifndef GAIN_TRIO_EPOLL_H
#define GAIN_TRIO_EPOLL_H

#include "core.h"

/* Is it exactly Trio's, with an open epoll and the table that it makes? */
bool tc_epoll_is_manager(PyObject *manager);
/* An awaitable: wait until the descriptor, which is not negative, is ready.  NULL: exception set. */
PyObject *tc_epoll_wait(int descriptor, bool writes, PyObject *task);
/* get_events(timeout), and process_events() of them.  0; 1: the wait has raised, -1: the rest has; exception set for both. */
int tc_epoll_tick(PyObject *manager, double timeout);
int tc_epoll_check(PyObject *epoll); /* -1: exception set */

#endif
