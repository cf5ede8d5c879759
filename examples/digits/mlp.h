/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A multi-layer perceptron: rectifiers between the layers, softmax cross-entropy
 * at the end, stochastic gradient descent with momentum. Plain C loops that the
 * compiler vectorises; every result is a function of the inputs alone.
 *
 * The rectifier is a ReLU with a rounded corner: its slope rises from 0 at 0 to 1 at
 * MLP_CORNER. With the sharp corner of a plain ReLU, a last bit rounded otherwise now
 * and then turns a unit on or off, and the weights of two runs part by a hundredth;
 * with this one, rounding stays rounding.
 */
#ifndef DIGITS_MLP_H
#define DIGITS_MLP_H

#include <stddef.h>
#include <stdint.h>

enum { MLP_MAX_LAYERS = 8 };
#define MLP_CORNER 0.5f

/* Layer l keeps `in` rows of `out` weights, then `out` biases: count floats from
 * `first` on in mlp.weights, and in the same order in its gradient. */
typedef struct mlp_layer {
    size_t in, out, first, count;
} mlp_layer;

typedef struct mlp {
    size_t nlayers, nparams;
    mlp_layer layer[MLP_MAX_LAYERS];
    float *weights, *velocity;         /* nparams each */
    float *active[MLP_MAX_LAYERS + 1]; /* [0]: the input rows; [l + 1]: layer l's output */
    float *slope[MLP_MAX_LAYERS];      /* of layer l's rectifier at each output; not of the last layer's */
    float *delta[MLP_MAX_LAYERS];      /* loss by layer l's output before the rectifier */
    size_t max_rows;                   /* room in active and delta */
} mlp;

/* sizes: nlayers + 1 of them, input first. Returns 0, or -1 without memory. The
 * caller fills the weights, and ends the model with mlp_destroy(). */
int mlp_create(mlp *m, const size_t *sizes, size_t nlayers, size_t max_rows);
void mlp_destroy(mlp *m);
/* Fills the weights: uniform, with the variance of He et al. 2015; biases 0. */
void mlp_init_weights(mlp *m, uint64_t seed);

/* From the `rows` inputs in active[0] to the scores in active[nlayers]. */
void mlp_forward(mlp *m, size_t rows);
/* Of that, layer l: from active[l] to active[l + 1]. */
void mlp_forward_layer(mlp *m, size_t l, size_t rows);
/* After mlp_forward(): adds the rows' losses to *loss, their right answers to
 * *right, and leaves the last layer's delta. */
void mlp_loss(mlp *m, const uint8_t *labels, size_t rows, double *loss, size_t *right);
/* After mlp_loss(), for l from nlayers - 1 down to 0: layer l's gradient, summed
 * over the rows, into grad; needs the delta of layer l. */
void mlp_gradient(const mlp *m, size_t l, size_t rows, float *grad);
/* From the delta of layer l to that of layer l - 1; l > 0. */
void mlp_backward(mlp *m, size_t l, size_t rows);
/* A step of layer l along its mean gradient. */
void mlp_update(mlp *m, size_t l, const float *grad, float rate, float momentum);

#endif
