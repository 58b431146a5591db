/* tls_records.h: where the records of TLS end, by their headers alone.
 *
 *     type   version   length    data
 *     1 B    2 B       2 B       `length` B
 *
 * OpenSSL decrypts whole records.  Asked for one of which a part is missing, it makes an exception of ssl's, which costs more
 * than decrypting a small message; and nearly each chunk of a large transfer ends amidst a record.
 */
#ifndef GAIN_TRIO_TLS_RECORDS_H
#define GAIN_TRIO_TLS_RECORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GT_RECORD 16384U                              /* the most bytes of data in a record */
#define GT_RECORD_HEADER 5U                           /* bytes */
#define GT_RECORD_OVERHEAD (GT_RECORD_HEADER + 2048U) /* the most that it has beside its data (RFC 5246, 6.2.3) */

/* The record of which the last bytes that have arrived are the beginning. */
typedef struct {
    uint32_t given;  /* bytes of it that are there, its header's included; 0: what has arrived ends with a record */
    uint32_t length; /* of all of it, once its header is there; before, the first half of the header's length */
} gt_partial_record;

/* More bytes have arrived.  *ends: how many records end in them.  False: they are no records of TLS; OpenSSL says so as soon as
 * it sees them. */
static inline bool gt_records_advance(gt_partial_record *record, const unsigned char *data, size_t count,
                                      uint32_t *ends)
{
    *ends = 0;
    while (count > 0) {
        size_t taken = 1;
        switch (record->given) {
        case 0: /* the type: change_cipher_spec to heartbeat */
            if (*data < 20 || *data > 24)
                return false;
            break;
        case 1: /* the version's first half: 3 since SSL 3 */
            if (*data != 3)
                return false;
            break;
        case 2:
            break;
        case 3:
            record->length = *data;
            break;
        case 4:
            record->length = GT_RECORD_HEADER + (record->length << 8 | *data);
            if (record->length > GT_RECORD + GT_RECORD_OVERHEAD)
                return false;
            break;
        default:
            taken = record->length - record->given < count ? record->length - record->given : count;
            break;
        }
        record->given += (uint32_t)taken;
        data += taken;
        count -= taken;
        if (record->given >= GT_RECORD_HEADER && record->given == record->length) {
            *record = (gt_partial_record){0, 0};
            ++*ends;
        }
    }
    return true;
}

#endif
