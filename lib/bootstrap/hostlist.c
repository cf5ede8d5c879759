/* SPDX-License-Identifier: Apache-2.0 */
#include "bootstrap/hostlist.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_DIGITS = 9 };

/* Not isalnum(): the answer must not depend on the host process's locale. */
static int is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static int is_name(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' || c == '-' || c == '_';
}

/* The digits at *p as a number, *p moved past them; -1 if there are none or too many. */
static long number(const char **p)
{
    const char *start = *p;
    long n = 0;

    while (is_digit(**p) && *p - start < MAX_DIGITS)
        n = n * 10 + *(*p)++ - '0';
    return *p == start || is_digit(**p) ? -1 : n;
}

/* Bytes of the first host are added to out; those of later ones are only checked. */
struct sink {
    char *out;
    size_t at, room;
    int on, full;
};

static void put(struct sink *s, const char *text, size_t n)
{
    if (!s->on)
        return;
    if (n >= s->room - s->at) {
        s->full = 1;
        return;
    }
    memcpy(s->out + s->at, text, n);
    s->at += n;
}

/* "[003-010,20]": the first number, padding kept, goes into the name. */
static const char *brackets(const char **p, struct sink *s)
{
    int first = 1;

    do {
        const char *start = ++*p; /* past '[' or ',' */
        long low = number(p);
        if (low < 0)
            return "a range is not a number";
        if (first)
            put(s, start, (size_t)(*p - start));
        first = 0;
        if (**p == '-') {
            ++*p;
            long high = number(p);
            if (high < low)
                return "a range ends before it starts";
        }
    } while (**p == ',');
    if (**p != ']')
        return "a bracket is not closed";
    ++*p;
    return NULL;
}

const char *gsi_hostlist_first(const char *list, char *out, size_t room)
{
    struct sink s = {out, 0, room, 1, 0};
    const char *p = list, *why;

    if (room == 0)
        return "there is no room for a name";
    out[0] = 0;
    for (;;) {
        const char *start = p;
        while (is_name(*p) || *p == '[') {
            if (*p == '[') {
                if ((why = brackets(&p, &s)))
                    return why;
                continue;
            }
            put(&s, p, 1);
            p++;
        }
        if (p == start)
            return *p ? "a character does not belong into a host name" : "a host name is missing";
        if (s.full)
            return "the host name is too long";
        s.on = 0;
        if (*p == 0)
            break;
        if (*p++ != ',')
            return "a character does not belong into a host name";
    }
    out[s.at] = 0;
    return NULL;
}

int gsi_tasks_on_node(const char *list, int node)
{
    const char *p = list;

    for (;;) {
        long tasks = number(&p), times = 1;
        if (tasks < 0)
            return -1;
        if (p[0] == '(' && p[1] == 'x') {
            p += 2;
            times = number(&p);
            if (times < 1 || *p++ != ')')
                return -1;
        }
        if (node < times)
            return (int)tasks;
        node -= (int)times;
        if (*p++ != ',')
            return -1;
    }
}
