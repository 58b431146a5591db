/* answer.c: see answer.h. */
#define _GNU_SOURCE
#include "answer.h"

#include "common.h"

#include <string.h>
#include <strings.h>

#define STATUS "HTTP/1.1 200 "
#define LENGTH_FIELD "content-length:"

/* The value of Content-Length in a head that ends with an empty line. */
static uint64_t parse_length(const char *head, uint32_t length)
{
    const char *end = head + length;
    const char *line = memchr(head, '\n', length);
    while (line && ++line < end) {
        const char *next = memchr(line, '\n', (size_t)(end - line));
        if (next && (size_t)(next - line) > strlen(LENGTH_FIELD) &&
            strncasecmp(line, LENGTH_FIELD, strlen(LENGTH_FIELD)) == 0) {
            char digits[24] = "";
            const char *value = line + strlen(LENGTH_FIELD);
            while (*value == ' ')
                value++;
            size_t count = strspn(value, "0123456789");
            if (count == 0 || count >= sizeof digits)
                break;
            memcpy(digits, value, count);
            return (uint64_t)parse_integer("Content-Length", digits, 0, INT64_MAX);
        }
        line = next;
    }
    fail("an answer without a Content-Length: %.*s", (int)length, head);
}

static void check_head(struct answer_model *model, const char *head, uint32_t length)
{
    if (length == model->head_length && memcmp(head, model->head, length) == 0)
        return;
    if (length < strlen(STATUS) || memcmp(head, STATUS, strlen(STATUS)) != 0)
        fail("an answer that is not " STATUS "but %.*s", (int)length, head);
    uint64_t body_length = parse_length(head, length);
    if (model->has_length && body_length != model->body_length)
        fail("an answer of %llu bytes; the first had %llu", (unsigned long long)body_length,
             (unsigned long long)model->body_length);
    model->has_length = true;
    model->body_length = body_length;
    model->head_length = length;
    memcpy(model->head, head, length);
}

/* Returns the bytes that belong to the head; all of them while the head is not complete. */
static uint32_t read_head(struct answer_reader *reader, struct answer_model *model, const char *data, uint32_t length)
{
    const char *head = data;
    uint32_t head_length = length, before = reader->head_length;
    if (before) {
        uint32_t room = ANSWER_HEAD - before;
        uint32_t count = length < room ? length : room;
        memcpy(reader->head + before, data, count);
        head = reader->head;
        head_length = before + count;
    }
    const char *end = memmem(head, head_length, "\r\n\r\n", 4);
    uint32_t whole = end ? (uint32_t)(end - head) + 4 : 0;
    if ((end ? whole : head_length) > ANSWER_HEAD || (!end && before && head_length == ANSWER_HEAD))
        fail("the head of an answer has more than %d bytes", ANSWER_HEAD);
    if (!end) {
        if (!before)
            memcpy(reader->head, data, length);
        reader->head_length = head_length;
        return length;
    }
    check_head(model, head, whole);
    reader->head_length = 0;
    reader->in_body = true;
    reader->position = 0;
    return whole - before;
}

static void check_body(const struct answer_reader *reader, struct answer_model *model, const char *data,
                       uint32_t length)
{
    if (reader->position >= ANSWER_COMPARED)
        return;
    uint32_t from = (uint32_t)reader->position;
    uint32_t count = length < ANSWER_COMPARED - from ? length : ANSWER_COMPARED - from;
    uint32_t known = model->compared > from ? model->compared - from : 0;
    if (known > count)
        known = count;
    if (memcmp(model->body + from, data, known) != 0)
        fail("the body of an answer differs from that of the first");
    /* Several connections may read their first answers at once, so the model grows from whichever is ahead. */
    if (known < count && model->compared == from + known) {
        memcpy(model->body + from + known, data + known, count - known);
        model->compared = from + count;
    }
}

uint32_t answer_read(struct answer_reader *reader, struct answer_model *model, const char *data, uint32_t length,
                     bool *complete)
{
    uint32_t used = 0;
    if (!reader->in_body) {
        used = read_head(reader, model, data, length);
        if (!reader->in_body)
            return used;
    }
    uint64_t missing = model->body_length - reader->position;
    uint32_t count = length - used < missing ? length - used : (uint32_t)missing;
    check_body(reader, model, data + used, count);
    reader->position += count;
    if (reader->position == model->body_length) {
        reader->in_body = false;
        *complete = true;
    }
    return used + count;
}
