/* SPDX-License-Identifier: Apache-2.0 */
/* What peers send: headers, pieces and signals, mail, news. An immediate says what has been written before it. Nothing
 * that a peer wrote is trusted as an index or a length. */
#include <stddef.h>
#include <string.h>

#include "base/clock.h"
#include "transport/net/net.h"

/* The collective that the low bits of a number speak of. Peers are never more than a few ahead of what this rank has
 * finished, or behind it (a repeated message). */
static int64_t ahead_of(const net_endpoint *ep, uint32_t low, uint32_t bits)
{
    uint32_t half = 1u << (bits - 1), mask = (half << 1) - 1;
    uint32_t diff = (low - (uint32_t)ep->finished) & mask;
    return diff >= half ? (int64_t)diff - (int64_t)mask - 1 : (int64_t)diff;
}

/* 1 and *seq if a collective that has just been spoken of can be going on at a peer. */
static int current(const net_endpoint *ep, uint32_t low, uint32_t bits, uint64_t *seq)
{
    int64_t ahead = ahead_of(ep, low, bits);
    *seq = ep->finished + (uint64_t)ahead;
    return ahead > 0 && ahead <= NET_LANES;
}

static void tell_credit(net_endpoint *ep, net_peer *peer, net_conn *conn)
{
    size_t index = (size_t)(conn - peer->conns);
    net_work *work = net_work_new(ep);

    if (!work)
        return; /* with the next arrival */
    conn->told = conn->consumed;
    peer->out->credits[index] = conn->consumed;
    work->local = (char *)&peer->out->credits[index];
    work->memory = &ep->area_memory;
    work->bytes = sizeof peer->out->credits[index];
    work->space = NET_TO_AREA;
    work->off = peer->inbox + offsetof(net_inbox, credits) + index * sizeof peer->in->credits[0];
    /* Before all else: the peer may have nothing but this to wait for, and so may this rank. */
    work->next = peer->urgent.head;
    peer->urgent.head = work;
    if (!peer->urgent.tail)
        peer->urgent.tail = work;
    net_pump(ep, peer);
}

static void header_arrived(net_endpoint *ep, net_peer *peer, uint32_t value)
{
    uint64_t seq;

    if (!current(ep, value, 24, &seq))
        return;
    const gsi_header *header = (const gsi_header *)peer->in->cells[seq % NET_LANES];
    /* In 32 bits; it is behind seq by little. */
    uint64_t done = seq - (uint32_t)((uint32_t)seq - header->done);
    if (done > peer->done && done < seq)
        peer->done = done;
    peer->entered[seq % NET_LANES] = seq;
}

/* Notes that a piece is through; 1 if it is new. -1: further ahead than any peer of ours sends. */
static int rx_note(net_rx *rx, uint32_t number, int flagged)
{
    const uint32_t mask = (1u << NET_NUMBER_BITS) - 1;
    uint32_t ahead = (number - rx->base - 1) & mask;

    if (ahead > mask / 2)
        return 0; /* long through */
    if (ahead >= NET_AHEAD)
        return -1;
    uint32_t at = (rx->base + 1 + ahead) % NET_AHEAD;
    uint64_t bit = (uint64_t)1 << at % 64;
    if (rx->seen[at / 64] & bit)
        return 0;
    rx->seen[at / 64] |= bit;
    if (flagged)
        rx->flagged[at / 64] |= bit;
    for (;;) {
        at = (rx->base + 1) % NET_AHEAD;
        bit = (uint64_t)1 << at % 64;
        if (!(rx->seen[at / 64] & bit))
            return 1;
        rx->signals += (rx->flagged[at / 64] & bit) != 0;
        rx->seen[at / 64] &= ~bit;
        rx->flagged[at / 64] &= ~bit;
        rx->base++;
    }
}

static void data_arrived(net_endpoint *ep, net_peer *peer, net_conn *conn, uint32_t imm)
{
    uint64_t seq;
    uint32_t stream = imm >> 25 & 7;

    if (!current(ep, imm >> NET_NUMBER_BITS & 255, 8, &seq))
        return;
    net_rx *rx = &peer->rx[seq % NET_LANES][stream];
    if (rx->seq != seq)
        *rx = (net_rx){.seq = seq};
    if (rx_note(rx, imm & ((1u << NET_NUMBER_BITS) - 1), (imm & NET_SIGNALS) != 0) < 0)
        net_conn_failed(ep, peer, conn, "the peer broke the protocol: a piece beyond the window");
}

static void done_arrived(const net_endpoint *ep, net_peer *peer, uint32_t value)
{
    uint64_t seq = ep->finished + (uint64_t)ahead_of(ep, value, 24);
    /* Nobody can have finished what this rank has not entered. */
    if (seq > peer->done && seq <= ep->entered)
        peer->done = seq;
}

static void failure_arrived(net_endpoint *ep, net_peer *peer)
{
    int none = NET_FAILURE_NONE;

    if (!atomic_compare_exchange_strong(&ep->failure_state, &none, NET_FAILURE_CLAIMED))
        return;
    ep->failure = peer->in->failure;
    ep->failure.text[sizeof ep->failure.text - 1] = 0;
    if (ep->failure.code >= 0 || ep->failure.code < GRADSYNC_ERR_INTERNAL)
        ep->failure.code = GRADSYNC_ERR_INTERNAL;
    if (ep->failure.peer < 0 || ep->failure.peer >= ep->base.n)
        ep->failure.peer = -1;
    atomic_store(&ep->failure_told, 1); /* who published it tells all */
    atomic_store(&ep->failure_state, NET_FAILURE_SET);
}

static void mail_arrived(net_endpoint *ep, net_peer *peer, net_conn *conn, uint32_t value)
{
    uint32_t ring = value >> 16 & 1;
    uint32_t ahead = (uint16_t)(value - (uint32_t)(peer->mail_got[ring] + 1));

    if (ahead >= 0x8000)
        return; /* it has been here before */
    if (ahead >= NET_MAIL_SLOTS) {
        net_conn_failed(ep, peer, conn, "the peer broke the protocol: mail that there is no room for");
        return;
    }
    /* Out of order where the connection has failed by which the one before came, and that is still to be polled. */
    peer->mail_seen[ring] |= 1u << ahead;
    for (; peer->mail_seen[ring] & 1; peer->mail_seen[ring] >>= 1)
        peer->mail_got[ring]++;
    if (ring != 0)
        return;
    const net_letter *mail;
    while ((mail = net_mail_first(ep, peer, 0))) {
        int rc = net_remote_told(ep, peer, mail);
        net_mail_taken(ep, peer, 0);
        if (rc)
            net_conn_failed(ep, peer, conn, "the peer broke the protocol: mail that makes no sense");
    }
}

static void conn_arrived(net_endpoint *ep, net_peer *peer, net_conn *conn, uint32_t value)
{
    if ((value & 15) == NET_GONE) {
        net_conn_gone(ep, peer, conn, value >> 8);
    } else if ((value & 15) == NET_LOST) {
        conn->heard_lost = 1;
        net_conn_failed(ep, peer, conn, "the peer has given it up");
    }
}

static void control_arrived(net_endpoint *ep, net_peer *peer, net_conn *conn, uint32_t value)
{
    if (value == NET_HELLO)
        conn->heard = 1;
    else if (value == NET_FAIL)
        failure_arrived(ep, peer);
    else if (value == NET_BYE)
        peer->left = 1;
    else if ((int)(value >> 4 & 15) < peer->nconns)
        conn_arrived(ep, peer, &peer->conns[value >> 4 & 15], value);
}

void net_arrived(net_endpoint *ep, net_peer *peer, net_conn *conn, uint32_t imm)
{
    uint32_t value = imm & 0xffffff;

    peer->heard = 1;
    switch (imm >> 29) {
    case NET_DATA:
        data_arrived(ep, peer, conn, imm);
        break;
    case NET_HEADER:
        header_arrived(ep, peer, value);
        break;
    case NET_MAIL:
        mail_arrived(ep, peer, conn, value);
        break;
    case NET_DONE:
        done_arrived(ep, peer, value);
        break;
    case NET_CONTROL:
        control_arrived(ep, peer, conn, value);
        break;
    default:
        net_conn_failed(ep, peer, conn, "the peer broke the protocol: an unknown message");
    }
    if (++conn->consumed - conn->told >= NET_CREDIT_EVERY && conn->state != NET_CONN_DEAD)
        tell_credit(ep, peer, conn);
}
