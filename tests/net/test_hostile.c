/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A peer that breaks the protocol: immediates and mail that nobody of ours would send, and inboxes that change under
 * the reader. The endpoint may give the peer up, but never reads or writes where it must not (the sanitizers' builds
 * see that), and never goes on for ever.
 */
#include "tap.h"
#include "world.h"

#include <string.h>

#include "transport/net/net.h"

static uint32_t forge_imm(world *w, const net_endpoint *ep)
{
    uint64_t r = fake_random(w->fabric);
    uint32_t ring, kind = (uint32_t)(r % 8), value = (uint32_t)(r >> 8);

    if (r >> 56 < 253) /* close to what is right */
        switch (kind % 5) {
        case NET_DATA:
            return net_imm_data(ep->finished + (r >> 32) % 6, (int)((r >> 36) % 8), (uint32_t)(r >> 40) % 1100,
                                (r >> 16) & 1);
        case NET_HEADER:
            return net_imm(NET_HEADER, (uint32_t)(ep->finished + (r >> 32) % 6));
        case NET_MAIL:
            ring = (uint32_t)((r >> 32) & 1);
            return net_imm(NET_MAIL,
                           ring << 16 | (uint16_t)(ep->peers[1].mail_got[ring] + (r >> 33) % (NET_MAIL_SLOTS + 1)));
        case NET_DONE:
            return net_imm(NET_DONE, (uint32_t)(ep->finished + (r >> 32) % 6));
        default:
            return net_imm(NET_CONTROL, (uint32_t)((r >> 32) % 64 < 2 ? 5 + (r >> 32) % 2 : (r >> 33) % 5) |
                                            (uint32_t)((r >> 36) % 16) << 4 | (value & 0xff) << 8);
        }
    return kind << 29 | (value & 0x1fffffff);
}

/* Anything at all in what the peer may write to, at any moment. */
static void scribble(world *w, net_endpoint *ep, int from)
{
    unsigned char *in = (unsigned char *)ep->peers[from].in;
    uint64_t r = fake_random(w->fabric), at = r % sizeof(net_inbox);

    for (uint64_t i = 0; i < 1 + (r >> 32) % 64 && at + i < sizeof(net_inbox); i++)
        in[at + i] = (unsigned char)fake_random(w->fabric);
    /* Mail that is nearly right. */
    net_letter *mail = &ep->peers[from].in->mail[(r >> 40) & 1][(r >> 41) % NET_MAIL_SLOTS];
    net_share_note note = {.id = (uint32_t)(r >> 50) % 40, .base = r, .bytes = r >> 20};
    mail->kind = (uint16_t)(1 + (r >> 45) % 4);
    mail->bytes = (r >> 48) % 4 ? sizeof note : (uint16_t)r;
    memcpy(mail->body, &note, sizeof note);
}

static void use(world *w, gsi_endpoint *ep, uint64_t *seq)
{
    char msg[GSI_MAIL_BYTES], text[300];
    uint32_t bytes;
    int from, next = 0, culprit;
    gsi_failure failure;
    void *addr;
    uint64_t room;

    ep->ops->progress(ep);
    while (ep->ops->mail_next(ep, &from, msg, &bytes))
        if (bytes > sizeof msg || from < 0 || from >= ep->n)
            abort();
    if (ep->ops->done(ep) + ep->lanes > *seq && fake_random(w->fabric) % 8 == 0) {
        gsi_header header = {.count = *seq};
        ep->ops->enter(ep, ++*seq, &header, msg, fake_random(w->fabric) % 40);
    }
    if (*seq && ep->ops->entered(ep, *seq, &next)) {
        for (int r = 0; r < ep->n; r++) {
            const gsi_header *h = ep->ops->header(ep, *seq, r);
            gsi_target target = {.off = h->u.mem.recv_off < 0 ? 0 : (uint64_t)h->u.mem.recv_off,
                                 .mem = h->u.mem.recv % 40,
                                 .space = GSI_RECV};
            memcpy(msg, ep->ops->slot(ep, *seq, r, sizeof msg), sizeof msg);
            if (r != ep->rank)
                ep->ops->put(ep, *seq, 0, r, &target, ep->ops->stage(ep, ep->rank), fake_random(w->fabric) % 9000, 1);
        }
        ep->ops->finish(ep, *seq);
    }
    for (int r = 0; r < ep->n; r++)
        if (r != ep->rank)
            ep->ops->resolve(ep, r, (uint32_t)(fake_random(w->fabric) % 40), &addr, &room);
    ep->ops->check(ep, *seq + 1, &culprit, text, sizeof text);
    if (ep->ops->failure(ep, &failure) && (failure.code >= 0 || failure.peer < -1 || failure.peer >= ep->n ||
                                           !memchr(failure.text, 0, sizeof failure.text)))
        abort();
}

/* Rank 1 attacks rank 0; rank 2 is honest. */
static int attack(uint64_t seed, uint64_t *forged)
{
    world w;
    world_options o = {.seed = seed, .n = 3, .rails = 1 + (int)(seed % 3), .max_inline = 64};
    uint64_t seqs[WORLD_RANKS] = {0};
    char why[300];

    if (world_make(&w, &o, why, sizeof why)) {
        tap_note("seed %llu: %s", (unsigned long long)seed, why);
        world_end(&w);
        return 0;
    }
    fake_lazy(w.fabric, 20, 20);
    net_endpoint *victim = (net_endpoint *)w.eps[0];
    int left = 1;
    for (int i = 0; i < 600 && left; i++) {
        for (uint64_t k = fake_random(w.fabric) % 4; k > 0; k--) {
            scribble(&w, victim, 1);
            *forged += (uint64_t)left;
            left = !fake_forge(w.fabric, 0, 1, forge_imm(&w, victim));
        }
        for (int r = 0; r < o.n; r++)
            use(&w, w.eps[r], &seqs[r]);
    }
    fake_cut(w.fabric, 0, 1); /* nobody waits for it */
    for (int i = 0; i < 50 * o.n; i++)
        w.eps[i % o.n]->ops->progress(w.eps[i % o.n]);
    /* Nonsense of the attacker's is no reason to give up the honest rank. */
    int honest = !victim->peers[2].lost;
    if (!honest)
        tap_note("seed %llu: rank 2 is lost: %s", (unsigned long long)seed, victim->peers[2].why);
    world_end(&w);
    return honest;
}

int main(int argc, char **argv)
{
    int rounds = getenv("GRADSYNC_TEST_FULL") ? 5000 : 300, bad = 0;
    uint64_t forged = 0;

    if (argc > 2 && !strcmp(argv[1], "--rounds"))
        rounds = atoi(argv[2]);
    for (int i = 0; i < rounds; i++)
        bad += !attack(1 + (uint64_t)i, &forged);
    tap_ok(!bad && forged > 10 * (uint64_t)rounds, "%d attacks by %llu immediates, mail and scribbled inboxes: %d bad",
           rounds, (unsigned long long)forged, bad);
    return tap_done();
}
