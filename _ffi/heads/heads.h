/* heads.h: what the files of gain_trio._heads share.
 *
 * Files, from the bottom to the top: bytes.c knows what a byte of a head can be a part of; response.c writes a whole response;
 * message.c knows what an ASGI app sends; send.c is a call of its `send`, and exchange.c has it; heads.c reads the heads of
 * requests, and is the module.
 */
#ifndef GAIN_TRIO_HEADS_H
#define GAIN_TRIO_HEADS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>

/* What a byte can be a part of. */
enum { GT_TOKEN = 1, GT_TARGET = 2, GT_VALUE = 4 };
extern unsigned char gt_byte_classes[256];
void gt_fill_byte_classes(void);

/* The first byte from `at` on that is not of the class, or the end. */
static inline const char *gt_skip(const char *at, const char *end, int class)
{
    while (at < end && gt_byte_classes[(unsigned char)*at] & class)
        at++;
    return at;
}

/* What a response is written from, all borrowed; NULL stands for what is not usual. */
typedef struct {
    PyObject *status_line;
    PyObject *date_line, *server_line;
    PyObject *headers; /* the app's */
    PyObject *body;
} gt_response;

/* The fields that an app gives, checked, in a tuple of its own, so that the app cannot change them.  NULL, perhaps with an
 * exception: they are not the usual ones, or no right ones. */
PyObject *gt_headers_keep(PyObject *headers);
/* The bytes of a response.  NULL without an exception: it is not the usual one, or no right one. */
PyObject *gt_response_write(const gt_response *response);

/* Interned strings. */
extern struct gt_names {
    PyObject *type, *body, *more_body, *status, *headers, *trailers, *start, *whole;
    PyObject *send, *message, *drains, *in_python, *failed, *refresh, *renew;
} gt_names;

int gt_message_init(void); /* -1 with an exception */
PyObject *gt_message_configure(PyObject *module, PyObject *args);
/* 1: the message is dealt with, and *data, if it is set, is to be sent; 0: it is for Python; -1 with an exception. */
int gt_message_take(PyObject *exchange, PyObject *message, PyObject **data);
/* Where that is to be sent, borrowed. */
PyObject *gt_exchange_connection(PyObject *exchange);
/* The state of an exchange that begins.  -1 with an exception. */
int gt_exchange_fill(PyObject *exchange, PyObject *http, PyObject *request);

PyObject *gt_send_new(PyObject *exchange, PyObject *message);

extern PyTypeObject gt_exchange_type;
extern PyTypeObject gt_send_type;

#endif
