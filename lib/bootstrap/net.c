/* SPDX-License-Identifier: Apache-2.0 */
#include "bootstrap/net.h"
#include "base/error.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void set_port(gsi_addr *a, int port)
{
    if (a->any.sa_family == AF_INET6)
        a->v6.sin6_port = htons((uint16_t)port);
    else
        a->v4.sin_port = htons((uint16_t)port);
}

static int same_addr(const gsi_addr *a, const gsi_addr *b)
{
    return a->len == b->len && !memcmp(&a->any, &b->any, a->len);
}

static void add(gsi_addrs *out, const struct sockaddr *sa, size_t len)
{
    if (out->n == GSI_ADDRS_MAX || (sa->sa_family != AF_INET && sa->sa_family != AF_INET6))
        return;
    for (int i = 0; i < out->n; i++)
        if (out->list[i].len == len && !memcmp(&out->list[i].any, sa, len))
            return;
    gsi_addr *a = &out->list[out->n++];
    memset(a, 0, sizeof *a);
    memcpy(&a->space, sa, len);
    a->len = (socklen_t)len;
}

static const char *resolve(const char *host, int flags, gsi_addrs *out)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags}, *list;
    int r = getaddrinfo(host, NULL, &hints, &list);

    out->n = 0;
    if (r)
        return gai_strerror(r);
    for (struct addrinfo *i = list; i; i = i->ai_next)
        add(out, i->ai_addr, i->ai_addrlen);
    freeaddrinfo(list);
    return out->n ? NULL : "it has no IPv4 or IPv6 address";
}

const char *gsi_net_resolve(const char *host, gsi_addrs *out)
{
    return resolve(host, 0, out);
}

int gsi_net_is_literal(const char *host)
{
    gsi_addrs ignored;

    return !resolve(host, AI_NUMERICHOST, &ignored);
}

int gsi_net_is_loopback(const gsi_addr *a)
{
    if (a->any.sa_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&a->v6.sin6_addr);
    return ntohl(a->v4.sin_addr.s_addr) >> 24 == 127;
}

const char *gsi_net_text(const gsi_addr *a, char out[GSI_ADDR_TEXT])
{
    char host[INET6_ADDRSTRLEN] = "?";
    struct in_addr v4;

    if (a->any.sa_family == AF_INET) {
        inet_ntop(AF_INET, &a->v4.sin_addr, host, sizeof host);
        snprintf(out, GSI_ADDR_TEXT, "%s:%d", host, ntohs(a->v4.sin_port));
    } else if (IN6_IS_ADDR_V4MAPPED(&a->v6.sin6_addr)) {
        memcpy(&v4, a->v6.sin6_addr.s6_addr + 12, sizeof v4);
        inet_ntop(AF_INET, &v4, host, sizeof host);
        snprintf(out, GSI_ADDR_TEXT, "%s:%d", host, ntohs(a->v6.sin6_port));
    } else {
        inet_ntop(AF_INET6, &a->v6.sin6_addr, host, sizeof host);
        snprintf(out, GSI_ADDR_TEXT, "[%s]:%d", host, ntohs(a->v6.sin6_port));
    }
    return out;
}

const char *gsi_net_error(int err, char buffer[64])
{
    return strerror_r(err, buffer, 64); /* the GNU one: see base/error.c */
}

/* ---- Where to listen ---- */

/* NCCL's notation: a comma-separated list of prefixes; "=" first: of exact names;
 * "^" first: all but these. */
static int if_matches(const char *spec, const char *name)
{
    int not = 0, exact = 0, found = 0;

    for (; *spec == '^' || *spec == '='; spec++) {
        if (*spec == '^')
            not = 1;
        else
            exact = 1;
    }
    for (;;) {
        size_t n = strcspn(spec, ",");
        if (n && !strncmp(spec, name, n) && (!exact || !name[n]))
            found = 1;
        if (!spec[n])
            return found != not ;
        spec += n + 1;
    }
}

static int plan_ifname(const gsi_job *job, gsi_addrs *out)
{
    struct ifaddrs *list;
    char names[160] = "", *last = "";

    if (getifaddrs(&list) < 0)
        return gsi_fail_errno(errno, "cannot list this host's network interfaces; unset GRADSYNC_IFNAME");
    for (struct ifaddrs *i = list; i; i = i->ifa_next) {
        int family = i->ifa_addr ? i->ifa_addr->sa_family : 0;
        if (family != AF_INET && family != AF_INET6)
            continue;
        if (if_matches(job->ifname, i->ifa_name))
            add(out, i->ifa_addr, family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6));
        size_t n = strlen(names);
        if (strcmp(last, i->ifa_name) != 0)
            snprintf(names + n, sizeof names - n, "%s%s", n ? ", " : "", i->ifa_name);
        last = i->ifa_name;
    }
    freeifaddrs(list);
    if (out->n)
        return 0;
    return gsi_fail(GRADSYNC_ERR_INVALID,
                    "GRADSYNC_IFNAME (or NCCL_SOCKET_IFNAME) is '%s', which matches no interface with an address on "
                    "this host; it has: %s",
                    job->ifname, names);
}

/* 1 if this host has the address. */
static int is_ours(const gsi_addr *a)
{
    gsi_addr copy = *a;
    int fd = socket(a->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), r;

    if (fd < 0)
        return 0;
    set_port(&copy, 0);
    r = bind(fd, &copy.any, copy.len);
    close(fd);
    return r == 0;
}

static void plan_any(gsi_addrs *out)
{
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_ANY_INIT};
    struct sockaddr_in v4 = {.sin_family = AF_INET};

    out->n = 0;
    add(out, (struct sockaddr *)&v6, sizeof v6); /* takes IPv4 as well */
    if (is_ours(&out->list[0]))
        return;
    out->n = 0;
    add(out, (struct sockaddr *)&v4, sizeof v4);
}

int gsi_net_listen_plan(const gsi_job *job, const gsi_log *log, gsi_addrs *out)
{
    int literal = gsi_net_is_literal(job->addr), kept = 0, loopback = 0;
    const char *why = gsi_net_resolve(job->addr, out);

    for (int i = 0; i < out->n; i++) {
        loopback += gsi_net_is_loopback(&out->list[i]);
        if (is_ours(&out->list[i]))
            out->list[kept++] = out->list[i];
    }
    int all = out->n;
    out->n = kept;
    if (all && loopback == all && (literal || !strcmp(job->addr, "localhost") || job->local_ranks == job->nranks))
        if (kept)
            return 0;
    if (job->ifname[0]) {
        gsi_addrs wanted = *out;
        out->n = 0;
        int r = plan_ifname(job, out), found = wanted.n == 0;
        for (int j = 0; j < wanted.n && !r; j++) {
            for (int i = 0; i < out->n; i++)
                found |= same_addr(&out->list[i], &wanted.list[j]);
            /* Ranks on this host may be led to it by the host's own name; no other host gets there. */
            if (gsi_net_is_loopback(&wanted.list[j])) {
                add(out, &wanted.list[j].any, wanted.list[j].len);
                found = 1;
            }
        }
        if (!r && !found)
            gsi_logf(log, GRADSYNC_LOG_WARN,
                     "rank 0 listens on the interfaces '%s' (GRADSYNC_IFNAME), but the other ranks connect to %s, "
                     "which is not on them; set GRADSYNC_ROOT or MASTER_ADDR to an address there",
                     job->ifname, job->addr);
        return r;
    }
    /* Many hosts' own name leads to a loopback address, at which no other host finds us; and an
     * address may be that of a gateway. Then listen everywhere: the key keeps strangers out. */
    if (!why && kept == all && !loopback)
        return 0;
    gsi_logf(log, literal || why ? GRADSYNC_LOG_WARN : GRADSYNC_LOG_INFO,
             "rank 0 listens on all interfaces, because %s %s%s; GRADSYNC_IFNAME restricts it", job->addr,
             why        ? "cannot be resolved here: "
             : loopback ? "is a loopback address here"
                        : "is not an address of this host",
             why ? why : "");
    plan_any(out);
    return 0;
}

int gsi_net_listen(const gsi_addr *a, int port, int *out)
{
    static const int yes = 1, no = 0;
    gsi_addr to = *a;
    int fd = socket(a->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), err;

    if (fd < 0)
        return errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes); /* connections of an earlier job may linger */
    if (to.any.sa_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, IN6_IS_ADDR_UNSPECIFIED(&to.v6.sin6_addr) ? &no : &yes, sizeof no);
    set_port(&to, port);
    if (bind(fd, &to.any, to.len) < 0 || listen(fd, 4096) < 0) {
        err = errno;
        close(fd);
        return err;
    }
    *out = fd;
    return 0;
}

/* ---- Connections ---- */

static void set_options(int fd)
{
    static const int yes = 1, idle = 5, every = 5, count = 3;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    /* A host that loses power sends no goodbye: find out within some 20 seconds. */
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every, sizeof every);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

int gsi_net_connect(const gsi_addr *a, int port)
{
    gsi_addr to = *a;
    int fd = socket(a->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), err;

    if (fd < 0)
        return -errno;
    set_options(fd);
    set_port(&to, port);
    if (connect(fd, &to.any, to.len) < 0 && errno != EINPROGRESS && errno != EINTR) {
        err = errno;
        close(fd);
        return -err;
    }
    return fd;
}

int gsi_net_accept(int listener, gsi_addr *from)
{
    memset(from, 0, sizeof *from);
    from->len = sizeof from->space;
    int fd = accept4(listener, &from->any, &from->len, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0)
        return -errno;
    set_options(fd);
    return fd;
}
