/* bytes.c: what a byte of a head can be a part of (RFC 9110, 5.5 and 5.6.2). */
#include "heads.h"

#include <string.h>

unsigned char gt_byte_classes[256];

void gt_fill_byte_classes(void)
{
    for (int byte = 0; byte < 256; byte++) {
        bool visible = byte > 0x20 && byte < 0x7f;
        bool letter = (byte >= 'A' && byte <= 'Z') || (byte >= 'a' && byte <= 'z') || (byte >= '0' && byte <= '9');
        int found = 0;
        if (letter || (byte && strchr("!#$%&'*+-.^_`|~", byte)))
            found |= GT_TOKEN;
        if (visible && byte != '#') /* a target has no fragment */
            found |= GT_TARGET;
        if (visible || byte == ' ' || byte == '\t' || byte >= 0x80)
            found |= GT_VALUE;
        gt_byte_classes[byte] = (unsigned char)found;
    }
}
