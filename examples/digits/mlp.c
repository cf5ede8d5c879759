/* SPDX-License-Identifier: Apache-2.0 */
#include "mlp.h"
#include "data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int mlp_create(mlp *m, const size_t *sizes, size_t nlayers, size_t max_rows)
{
    int failed = 0;

    *m = (mlp){.nlayers = nlayers, .max_rows = max_rows};
    for (size_t l = 0; l < nlayers; l++) {
        size_t in = sizes[l], out = sizes[l + 1];

        m->layer[l] = (mlp_layer){.in = in, .out = out, .first = m->nparams, .count = (in + 1) * out};
        m->nparams += m->layer[l].count;
        m->delta[l] = calloc(max_rows * out, sizeof(float));
        m->slope[l] = calloc(max_rows * out, sizeof(float));
        failed |= !m->delta[l] || !m->slope[l];
    }
    for (size_t l = 0; l <= nlayers; l++) {
        m->active[l] = calloc(max_rows * sizes[l], sizeof(float));
        failed |= !m->active[l];
    }
    m->weights = calloc(m->nparams, sizeof(float));
    m->velocity = calloc(m->nparams, sizeof(float));
    if (failed || !m->weights || !m->velocity) {
        mlp_destroy(m);
        return -1;
    }
    return 0;
}

void mlp_destroy(mlp *m)
{
    for (size_t l = 0; l <= m->nlayers; l++)
        free(m->active[l]);
    for (size_t l = 0; l < m->nlayers; l++) {
        free(m->delta[l]);
        free(m->slope[l]);
    }
    free(m->weights);
    free(m->velocity);
    *m = (mlp){0};
}

void mlp_init_weights(mlp *m, uint64_t seed)
{
    for (size_t l = 0; l < m->nlayers; l++) {
        const mlp_layer *y = &m->layer[l];
        float *w = m->weights + y->first;
        double limit = sqrt(6.0 / (double)y->in);

        for (size_t i = 0; i < y->in * y->out; i++) {
            double unit = (double)(digits_random(&seed) >> 11) * 0x1p-53;

            w[i] = (float)(limit * (2.0 * unit - 1.0));
        }
        memset(w + y->in * y->out, 0, y->out * sizeof(float));
    }
}

/* y += a * x. The loop that nearly all of the time goes to. */
static void add_scaled(float *restrict y, const float *restrict x, float a, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

/* y and its slope, from y before the rectifier: 0 below 0, y^2 / 2C up to the corner
 * C, then y - C / 2. */
static void rectify(float *restrict y, float *restrict slope, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float up = y[i] > 0.0f ? y[i] : 0.0f;
        float bend = up < MLP_CORNER ? up : MLP_CORNER;

        slope[i] = bend * (1.0f / MLP_CORNER);
        y[i] = up - bend + 0.5f * bend * slope[i];
    }
}

/* Eight running sums: a fixed order, and one that vectorises. */
static float dot(const float *restrict a, const float *restrict b, size_t n)
{
    float sum[8] = {0};
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        for (size_t k = 0; k < 8; k++)
            sum[k] += a[i + k] * b[i + k];
    for (size_t k = 0; i + k < n; k++)
        sum[k] += a[i + k] * b[i + k];
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

void mlp_forward_layer(mlp *m, size_t l, size_t rows)
{
    const mlp_layer *y = &m->layer[l];
    const float *w = m->weights + y->first, *bias = w + y->in * y->out;

    for (size_t r = 0; r < rows; r++) {
        const float *x = m->active[l] + r * y->in;
        float *z = m->active[l + 1] + r * y->out;

        memcpy(z, bias, y->out * sizeof(float));
        for (size_t i = 0; i < y->in; i++)
            if (x[i] != 0.0f) /* the paper's margins, and units that are off */
                add_scaled(z, w + i * y->out, x[i], y->out);
        if (l + 1 < m->nlayers)
            rectify(z, m->slope[l] + r * y->out, y->out);
    }
}

void mlp_forward(mlp *m, size_t rows)
{
    for (size_t l = 0; l < m->nlayers; l++)
        mlp_forward_layer(m, l, rows);
}

void mlp_loss(mlp *m, const uint8_t *labels, size_t rows, double *loss, size_t *right)
{
    size_t n = m->layer[m->nlayers - 1].out;

    for (size_t r = 0; r < rows; r++) {
        const float *z = m->active[m->nlayers] + r * n;
        float *d = m->delta[m->nlayers - 1] + r * n;
        float total = 0.0f;
        size_t best = 0;

        for (size_t o = 1; o < n; o++)
            if (z[o] > z[best])
                best = o;
        for (size_t o = 0; o < n; o++) {
            d[o] = expf(z[o] - z[best]);
            total += d[o];
        }
        *loss += log((double)total) - (double)(z[labels[r]] - z[best]);
        *right += best == labels[r];
        for (size_t o = 0; o < n; o++)
            d[o] /= total;
        d[labels[r]] -= 1.0f;
    }
}

void mlp_gradient(const mlp *m, size_t l, size_t rows, float *grad)
{
    const mlp_layer *y = &m->layer[l];
    float *bias = grad + y->in * y->out;

    memset(grad, 0, y->count * sizeof(float));
    for (size_t r = 0; r < rows; r++) {
        const float *x = m->active[l] + r * y->in;
        const float *d = m->delta[l] + r * y->out;

        for (size_t i = 0; i < y->in; i++)
            if (x[i] != 0.0f)
                add_scaled(grad + i * y->out, d, x[i], y->out);
        add_scaled(bias, d, 1.0f, y->out);
    }
}

void mlp_backward(mlp *m, size_t l, size_t rows)
{
    const mlp_layer *y = &m->layer[l];
    const float *w = m->weights + y->first;

    for (size_t r = 0; r < rows; r++) {
        const float *slope = m->slope[l - 1] + r * y->in;
        const float *d = m->delta[l] + r * y->out;
        float *below = m->delta[l - 1] + r * y->in;

        for (size_t i = 0; i < y->in; i++)
            below[i] = slope[i] != 0.0f ? slope[i] * dot(d, w + i * y->out, y->out) : 0.0f;
    }
}

void mlp_update(mlp *m, size_t l, const float *grad, float rate, float momentum)
{
    const mlp_layer *y = &m->layer[l];
    float *restrict w = m->weights + y->first, *restrict v = m->velocity + y->first;

    for (size_t i = 0; i < y->count; i++) {
        v[i] = momentum * v[i] + grad[i];
        w[i] -= rate * v[i];
    }
}
