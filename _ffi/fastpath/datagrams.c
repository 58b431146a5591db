/* datagrams.c: addresses in both forms, and datagrams that wait.
 *
 * A server gets its datagrams from a few peers over and over, and answers them.  So the tuple that a source address
 * becomes is made once and handed out again, and is recognised when it comes back as a destination.  A source address has two
 * places of a table to be in, so that the table stays small: with one place each, two of a hundred peers share one in nearly any
 * table, and turn each other out with every datagram.  A destination is nearly always the source of the datagram that was
 * received last.  A miss costs what it always did.
 */
#include "endpoint.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <string.h>

#define FEWEST_PEERS 64U
#define MOST_PEERS 4096U
#define FEWEST_DATAGRAMS 8U

/* --- addresses --- */

bool gt_sockaddr_equal(const gt_sockaddr *one, const gt_sockaddr *other)
{
    if (one->generic.sa_family != other->generic.sa_family)
        return false;
    if (one->generic.sa_family == AF_INET)
        return one->v4.sin_port == other->v4.sin_port && one->v4.sin_addr.s_addr == other->v4.sin_addr.s_addr;
    return one->v6.sin6_port == other->v6.sin6_port && one->v6.sin6_flowinfo == other->v6.sin6_flowinfo &&
           one->v6.sin6_scope_id == other->v6.sin6_scope_id &&
           memcmp(&one->v6.sin6_addr, &other->v6.sin6_addr, sizeof one->v6.sin6_addr) == 0;
}

static uint32_t hash_sockaddr(const gt_sockaddr *raw)
{
    uint64_t hash;
    if (raw->generic.sa_family == AF_INET) {
        hash = (uint64_t)raw->v4.sin_addr.s_addr << 16 | raw->v4.sin_port;
    } else {
        uint64_t halves[2];
        memcpy(halves, &raw->v6.sin6_addr, sizeof halves);
        hash = halves[0] ^ (halves[1] * 31) ^ (uint64_t)raw->v6.sin6_port << 16 ^ raw->v6.sin6_scope_id;
    }
    hash *= 0x9e3779b97f4a7c15ULL; /* the golden ratio: neighbours are spread over the table */
    return (uint32_t)(hash >> 40);
}

static uint32_t hash_tuple(const PyObject *tuple)
{
    return (uint32_t)(((uint64_t)(uintptr_t)tuple * 0x9e3779b97f4a7c15ULL) >> 40);
}

static PyObject *make_tuple(const gt_sockaddr *raw)
{
    char text[INET6_ADDRSTRLEN];
    if (raw->generic.sa_family == AF_INET) {
        inet_ntop(AF_INET, &raw->v4.sin_addr, text, sizeof text);
        return Py_BuildValue("(si)", text, (int)ntohs(raw->v4.sin_port));
    }
    inet_ntop(AF_INET6, &raw->v6.sin6_addr, text, sizeof text);
    return Py_BuildValue("(siII)", text, (int)ntohs(raw->v6.sin6_port), (unsigned int)ntohl(raw->v6.sin6_flowinfo),
                         (unsigned int)raw->v6.sin6_scope_id);
}

static bool refuse_host(PyObject *tuple, int family)
{
    PyErr_Format(
        PyExc_ValueError,
        "%R is not an IPv%d address, which this endpoint sends to; names are not looked up for every datagram: "
        "do it once, with trio.socket.getaddrinfo()",
        PyTuple_GET_ITEM(tuple, 0), family == AF_INET ? 4 : 6);
    return false;
}

/* An unsigned number of a tuple, at most `limit`. */
static bool parse_number(PyObject *object, const char *what, unsigned long limit, unsigned long *value)
{
    *value = PyLong_AsUnsignedLong(object);
    bool failed = *value == (unsigned long)-1 && PyErr_Occurred();
    if (failed && !PyErr_ExceptionMatches(PyExc_OverflowError))
        return false;
    if (failed || *value > limit) {
        PyErr_Format(PyExc_ValueError, "the %s of an address must be 0 to %lu, not %R", what, limit, object);
        return false;
    }
    return true;
}

/* fe80::1%eth0 or fe80::1%2 */
static bool parse_ipv6(const char *host, struct sockaddr_in6 *raw)
{
    const char *percent = strchr(host, '%');
    char plain[INET6_ADDRSTRLEN];
    size_t length = percent ? (size_t)(percent - host) : strlen(host);
    if (length >= sizeof plain)
        return false;
    memcpy(plain, host, length);
    plain[length] = '\0';
    if (inet_pton(AF_INET6, plain, &raw->sin6_addr) != 1)
        return false;
    if (percent) {
        char *end;
        unsigned long number = strtoul(percent + 1, &end, 10);
        raw->sin6_scope_id = if_nametoindex(percent + 1);
        if (raw->sin6_scope_id == 0 && end != percent + 1 && *end == '\0')
            raw->sin6_scope_id = (uint32_t)number;
        return raw->sin6_scope_id != 0;
    }
    return true;
}

bool gt_sockaddr_parse(PyObject *tuple, int family, gt_sockaddr *raw)
{
    Py_ssize_t size = PyTuple_Check(tuple) ? PyTuple_GET_SIZE(tuple) : 0;
    unsigned long port, flow = 0, scope = 0;
    if (size < 2 || size > (family == AF_INET ? 2 : 4) || !PyUnicode_Check(PyTuple_GET_ITEM(tuple, 0))) {
        PyErr_Format(PyExc_TypeError, "an address here is a tuple (host, port%s) as receive() returns it, not %R",
                     family == AF_INET ? "" : "[, flow information[, scope]]", tuple);
        return false;
    }
    Py_ssize_t length;
    const char *host = PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(tuple, 0), &length);
    if (!host || !parse_number(PyTuple_GET_ITEM(tuple, 1), "port", 65535, &port) ||
        (size > 2 && !parse_number(PyTuple_GET_ITEM(tuple, 2), "flow information", 0xfffff, &flow)) ||
        (size > 3 && !parse_number(PyTuple_GET_ITEM(tuple, 3), "scope", UINT32_MAX, &scope)))
        return false;
    if (strlen(host) != (size_t)length)
        return refuse_host(tuple, family);
    memset(raw, 0, sizeof *raw);
    raw->generic.sa_family = (sa_family_t)family;
    if (family == AF_INET) {
        raw->v4.sin_port = htons((uint16_t)port);
        if (inet_pton(AF_INET, host, &raw->v4.sin_addr) != 1)
            return refuse_host(tuple, family);
        return true;
    }
    raw->v6.sin6_port = htons((uint16_t)port);
    raw->v6.sin6_flowinfo = htonl((uint32_t)flow);
    if (!parse_ipv6(host, &raw->v6))
        return refuse_host(tuple, family);
    if (scope)
        raw->v6.sin6_scope_id = (uint32_t)scope;
    return true;
}

/* --- the addresses seen last --- */

static bool resize_peers(gt_peers *peers, uint32_t count)
{
    gt_peers resized = {.count = count, .latest = UINT32_MAX, .turned_out = peers->turned_out};
    resized.places = PyMem_Calloc(count, sizeof *resized.places);
    resized.by_tuple = PyMem_Calloc(count, sizeof *resized.by_tuple);
    if (!resized.places || !resized.by_tuple) {
        PyMem_Free(resized.places);
        PyMem_Free(resized.by_tuple);
        return false;
    }
    /* In the larger table the two of a pair of places have one pair, or two: there is room. */
    for (uint32_t i = 0; i < peers->count; i++) {
        gt_peer *peer = &peers->places[i];
        if (peer->tuple) {
            uint32_t place = hash_sockaddr(&peer->raw) & (count - 2);
            place += resized.places[place].tuple != NULL;
            resized.places[place] = *peer;
            resized.by_tuple[hash_tuple(peer->tuple) & (count - 1)] = place + 1;
        }
    }
    PyMem_Free(peers->places);
    PyMem_Free(peers->by_tuple);
    *peers = resized;
    return true;
}

gt_peer *gt_peers_find(gt_peers *peers, const gt_sockaddr *raw)
{
    if (peers->count == 0)
        return NULL;
    gt_peer *pair = &peers->places[hash_sockaddr(raw) & (peers->count - 2)];
    for (int i = 0; i < 2; i++)
        if (pair[i].tuple && gt_sockaddr_equal(&pair[i].raw, raw))
            return &pair[i];
    return NULL;
}

gt_peer *gt_peers_find_tuple(gt_peers *peers, PyObject *tuple)
{
    if (peers->latest < peers->count && peers->places[peers->latest].tuple == tuple)
        return &peers->places[peers->latest];
    if (peers->count == 0)
        return NULL;
    uint32_t place = peers->by_tuple[hash_tuple(tuple) & (peers->count - 1)];
    return place && peers->places[place - 1].tuple == tuple ? &peers->places[place - 1] : NULL;
}

gt_peer *gt_peers_get(gt_peers *peers, const gt_sockaddr *raw)
{
    gt_peer *peer = gt_peers_find(peers, raw);
    if (peer)
        return peer;
    PyObject *tuple = make_tuple(raw);
    if (!tuple)
        return NULL;
    if (peers->count == 0 && !resize_peers(peers, FEWEST_PEERS)) {
        Py_DECREF(tuple);
        PyErr_NoMemory();
        return NULL;
    }
    uint32_t hash = hash_sockaddr(raw), place;
    for (;;) {
        place = hash & (peers->count - 2);
        place += peers->places[place].tuple != NULL;
        /* A third one has the table grow as long as it may; without the memory it turns one of the two out. */
        if (!peers->places[place].tuple || peers->count >= MOST_PEERS || !resize_peers(peers, peers->count * 2))
            break;
    }
    if (peers->places[place].tuple)
        place -= peers->turned_out++ & 1;
    peer = &peers->places[place];
    Py_XDECREF(peer->tuple); /* a tuple of a string and numbers: runs no Python code */
    *peer = (gt_peer){.raw = *raw, .tuple = tuple};
    peers->by_tuple[hash_tuple(tuple) & (peers->count - 1)] = place + 1;
    return peer;
}

void gt_peers_clear(gt_peers *peers)
{
    for (uint32_t i = 0; i < peers->count; i++)
        Py_CLEAR(peers->places[i].tuple);
    PyMem_Free(peers->places);
    PyMem_Free(peers->by_tuple);
    memset(peers, 0, sizeof *peers);
}

/* --- datagrams that wait --- */

gt_datagram *gt_datagrams_push(gt_datagrams *queue, PyObject *data)
{
    if (queue->count == queue->capacity) {
        uint32_t capacity = queue->capacity ? queue->capacity * 2 : FEWEST_DATAGRAMS;
        gt_datagram *datagrams = PyMem_Malloc(capacity * sizeof *datagrams);
        if (!datagrams)
            return NULL;
        for (uint32_t i = 0; i < queue->count; i++)
            datagrams[i] = *gt_datagrams_at(queue, i);
        PyMem_Free(queue->datagrams);
        queue->datagrams = datagrams;
        queue->capacity = capacity;
        queue->head = 0;
    }
    gt_datagram *datagram = gt_datagrams_at(queue, queue->count++);
    datagram->data = Py_NewRef(data);
    datagram->address = NULL;
    queue->bytes += (size_t)PyBytes_GET_SIZE(data);
    return datagram;
}

gt_datagram gt_datagrams_pop(gt_datagrams *queue)
{
    gt_datagram datagram = *gt_datagrams_at(queue, 0);
    queue->head++;
    queue->count--;
    queue->bytes -= (size_t)PyBytes_GET_SIZE(datagram.data);
    return datagram;
}

void gt_datagrams_clear(gt_datagrams *queue)
{
    while (queue->count > 0) {
        gt_datagram datagram = gt_datagrams_pop(queue);
        Py_DECREF(datagram.data);
        Py_XDECREF(datagram.address);
    }
    PyMem_Free(queue->datagrams);
    memset(queue, 0, sizeof *queue);
}
