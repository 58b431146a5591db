/* answer.h: answers of an HTTP server, read strictly enough to notice a wrong one.
 *
 * All answers of a server have to be alike: status 200, a Content-Length, and the body of the first answer (compared byte by
 * byte up to ANSWER_COMPARED, and by its length beyond).  run.py looks at that first answer before it measures.
 */
#ifndef BENCH_ANSWER_H
#define BENCH_ANSWER_H

#include <stdbool.h>
#include <stdint.h>

#define ANSWER_HEAD 4096
#define ANSWER_COMPARED 65536

/* What is known of a server's answers. */
struct answer_model {
    bool has_length; /* of the body */
    uint64_t body_length;
    uint32_t compared;    /* bytes of the first body that are known so far */
    uint32_t head_length; /* of the last head; most are like it, and need no second look */
    char head[ANSWER_HEAD];
    char body[ANSWER_COMPARED];
};

/* How far a connection has read its current answer; all 0 at the beginning. */
struct answer_reader {
    bool in_body;
    uint64_t position; /* in the body */
    uint32_t head_length;
    char head[ANSWER_HEAD]; /* a head that came in pieces */
};

/* Read on; returns how many of the bytes belong to this answer, and sets `complete` with the last of them.  Fails the program
 * for a wrong answer. */
uint32_t answer_read(struct answer_reader *reader, struct answer_model *model, const char *data, uint32_t length,
                     bool *complete);

#endif
