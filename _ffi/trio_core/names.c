/* names.c: the attribute names that are looked up, as interned strings. */
#include "core.h"

tc_names_type tc_names;

int tc_names_init(void)
{
#define X(name)                                                                                                        \
    if (!tc_names.name && !(tc_names.name = PyUnicode_InternFromString(#name)))                                        \
        return -1;
    TC_NAMES(X)
#undef X
    return 0;
}
