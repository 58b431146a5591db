/* socket_call.h: a call in progress on a socket. */
#ifndef GAIN_TRIO_SOCKET_CALL_H
#define GAIN_TRIO_SOCKET_CALL_H

#include "core.h"

#include <netinet/in.h>

typedef union {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
} tc_address;

#define TC_LONGEST_DATAGRAM 65536

/* A call in progress on a socket: what the task awaits. */
typedef struct {
    PyObject_HEAD
    PyObject *sock;              /* the socket.socket */
    PyObject *function;          /* of socket.socket: what does it, when this file does not */
    PyObject *arguments, *names; /* a tuple, without the socket; a dict or NULL */
    PyObject *data;              /* of these the buffer, for TC_SEND and TC_RECV_INTO */
    PyObject *waiter;            /* what is awaited meanwhile, or NULL */
    PyObject *result, *error;    /* what it came to */
    PyObject *detector;          /* of conflicts between senders, held by this call; or NULL */
    Py_buffer view;              /* of a stream's send: held to its end */
    tc_address address;          /* for TC_SENDTO */
    Py_ssize_t offset, length;
    int flags;
    uint8_t call, state;
    bool writes, stream, iterates, has_view;
} tc_socket_call;

tc_socket_call *tc_socket_call_new(enum tc_call call, PyObject *sock, bool writes);
/* Try a call that is set up.  Takes the reference to it.  NULL: exception set. */
PyObject *tc_socket_call_begin(tc_socket_call *self, PyObject *task);
/* The task that may make such a call here, borrowed; NULL: Trio has to do it.  Sets no exception. */
PyObject *tc_may_call(PyObject *socket);
PyObject *tc_socket_of(PyObject *socket); /* its _sock, owned; NULL without an exception: not what it should be */

/* --- socket_attempt.c --- */

int tc_family_of(PyObject *sock);
int tc_attempt(tc_socket_call *self); /* 1: there is a result or an error, 0: it would block */
/* A numeric address, which needs no resolving; false: it is something else.  Sets no exception. */
bool tc_parse_address(PyObject *address, int family, tc_address *parsed);

#endif
