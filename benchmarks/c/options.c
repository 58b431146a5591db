/* options.c: see options.h. */
#define _GNU_SOURCE
#include "options.h"

#include "common.h"

#include <arpa/inet.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_CONNECTIONS 16384
#define MAX_MESSAGE (1 << 20)
#define MAX_DEPTH 1024
#define MAX_DATAGRAM 65507
#define MAX_MESSAGE_MEMORY (1LL << 30)
#define MAX_IDLE 100000
#define MAX_SECONDS 300

static const char usage_text[] =
    "usage: echo_load -p PORT [-H 127.0.0.1] [-c connections] [-s bytes] [-d seconds] [-P depth] [-w warm-up seconds]\n"
    "                 [--pid PID] [--ref PORT --refpid PID] [--churn | --udp | --request FILE | --websocket]\n"
    "                 [--slices]\n"
    "       echo_load -p PORT --idle connections [-s bytes | --request FILE] [-d seconds]\n"
    "\n"
    "  --pid     process of the server: account for its CPU time\n"
    "  --ref     port of a reference server: it takes turns of 100 ms with the server, and each gets -d seconds\n"
    "  --refpid  its process\n"
    "  --churn   a connection, one message echoed, closed, and again\n"
    "  --udp     every message is a datagram, every connection a connected UDP socket\n"
    "  --request send the HTTP request in this file, with -P of them in flight; -s says about how long an answer is;\n"
    "            eight # in the request become a number that is new each time\n"
    "  --websocket   every message is a WebSocket frame (the reference gets the same bytes without)\n"
    "  --idle    exchange one message on each connection, say so, keep the connections until stdin ends (at most -d "
    "seconds)\n"
    "  --slices  print every slice, too\n";

enum {
    OPTION_PID = 256,
    OPTION_REFERENCE,
    OPTION_REFERENCE_PID,
    OPTION_CHURN,
    OPTION_UDP,
    OPTION_REQUEST,
    OPTION_WEBSOCKET,
    OPTION_IDLE,
    OPTION_SLICES,
};

static const struct option long_options[] = {
    {"pid", required_argument, NULL, OPTION_PID},
    {"ref", required_argument, NULL, OPTION_REFERENCE},
    {"refpid", required_argument, NULL, OPTION_REFERENCE_PID},
    {"churn", no_argument, NULL, OPTION_CHURN},
    {"udp", no_argument, NULL, OPTION_UDP},
    {"request", required_argument, NULL, OPTION_REQUEST},
    {"websocket", no_argument, NULL, OPTION_WEBSOCKET},
    {"idle", required_argument, NULL, OPTION_IDLE},
    {"slices", no_argument, NULL, OPTION_SLICES},
    {"help", no_argument, NULL, 'h'},
    {0},
};

__attribute__((noreturn)) static void usage(int status)
{
    fputs(usage_text, status ? stderr : stdout);
    exit(status);
}

/* A load generator that sends to another machine is an attack: this one only sends to its own. */
static struct in_addr parse_loopback(const char *text)
{
    struct in_addr address;
    if (inet_pton(AF_INET, text, &address) != 1 || (ntohl(address.s_addr) >> 24) != 127)
        fail("the host must be in 127.0.0.0/8, not '%s'", text);
    return address;
}

static int64_t parse_seconds(const char *what, const char *text, double low)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !isfinite(value) || value < low || value > MAX_SECONDS)
        fail("%s must be %g to %d seconds, not '%s'", what, low, MAX_SECONDS, text);
    return (int64_t)(value * (double)NS_PER_SECOND);
}

static void parse_one(struct options *options, int option, const char *value)
{
    switch (option) {
    case 'H':
        options->host = parse_loopback(value);
        break;
    case 'p':
        options->port = (uint16_t)parse_integer("-p", value, 1, 65535);
        break;
    case 'c':
        options->connections = (uint32_t)parse_integer("-c", value, 1, MAX_CONNECTIONS);
        break;
    case 's':
        options->size = (uint32_t)parse_integer("-s", value, 1, MAX_MESSAGE);
        break;
    case 'd':
        options->duration_ns = parse_seconds("-d", value, 0.1);
        break;
    case 'P':
        options->depth = (uint32_t)parse_integer("-P", value, 1, MAX_DEPTH);
        break;
    case 'w':
        options->warmup_ns = parse_seconds("-w", value, 0);
        break;
    case OPTION_PID:
        options->server_pid = (pid_t)parse_integer("--pid", value, 1, INT32_MAX);
        break;
    case OPTION_REFERENCE:
        options->reference_port = (uint16_t)parse_integer("--ref", value, 1, 65535);
        break;
    case OPTION_REFERENCE_PID:
        options->reference_pid = (pid_t)parse_integer("--refpid", value, 1, INT32_MAX);
        break;
    case OPTION_CHURN:
        options->churn = true;
        break;
    case OPTION_UDP:
        options->udp = true;
        break;
    case OPTION_REQUEST:
        options->request = value;
        break;
    case OPTION_WEBSOCKET:
        options->websocket = true;
        break;
    case OPTION_IDLE:
        options->idle = (uint32_t)parse_integer("--idle", value, 1, MAX_IDLE);
        break;
    case OPTION_SLICES:
        options->print_slices = true;
        break;
    case 'h':
        usage(0);
    default:
        usage(2);
    }
}

void options_parse(struct options *options, int count, char **arguments)
{
    *options = (struct options){
        .host.s_addr = htonl(INADDR_LOOPBACK),
        .connections = 1,
        .size = 64,
        .depth = 1,
        .duration_ns = 3 * NS_PER_SECOND,
        .warmup_ns = NS_PER_SECOND / 2,
    };
    for (;;) {
        int option = getopt_long(count, arguments, "H:p:c:s:d:P:w:h", long_options, NULL);
        if (option == -1)
            break;
        parse_one(options, option, optarg);
    }
    if (optind < count || options->port == 0)
        usage(2);
    if ((options->reference_port != 0) != (options->reference_pid != 0) ||
        (options->reference_pid && !options->server_pid))
        fail("--ref, --refpid and --pid belong together");
    if (options->churn && options->depth != 1)
        fail("--churn echoes one message per connection: -P must be 1");
    if (options->churn + options->udp + (options->idle > 0) > 1)
        fail("--churn, --udp and --idle exclude each other");
    if ((options->request || options->websocket) && (options->churn || options->udp))
        fail("--request and --websocket are for lasting connections");
    if (options->websocket && (options->request || options->idle))
        fail("--websocket excludes --request and --idle");
    if (options->udp && (options->depth != 1 || options->size > MAX_DATAGRAM))
        fail("--udp sends one datagram at a time, of at most %d bytes: -P must be 1", MAX_DATAGRAM);
    if ((int64_t)options->connections * options->size * options->depth > MAX_MESSAGE_MEMORY)
        fail("connections x bytes x depth must not be over 1 GiB");
}
