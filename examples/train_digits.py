#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Data-parallel training in numpy over gradsync: a multi-layer perceptron on 1,797
handwritten digits. Every rank has the whole model and its share of each batch; the
gradient of each layer is all-reduced while the backward pass still works on the
layers below.

    gradsync-run -n 4 -- python3 examples/train_digits.py

also under torchrun, srun or mpirun, or alone. The global batch is the same for any
number of ranks: N ranks end where one rank ends, but for rounding.
"""
from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any, List, Optional, Tuple

# One thread a rank: the ranks are the parallelism here.
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np

HERE = Path(__file__).resolve().parent
try:
    import gradsync
except ModuleNotFoundError:  # not installed: take the package of this source tree
    sys.path.append(str(HERE.parent / "bindings" / "python"))
    import gradsync

CLASSES = 10
LAUNCHED = ("GRADSYNC_SIZE", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS", "PMI_SIZE")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training images (30)")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch of all ranks together (64)")
    parser.add_argument("--lr", type=float, default=0.1, help="first learning rate; it falls linearly to 0 (0.1)")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--hidden", default="256,128", help="sizes of the hidden layers (256,128)")
    parser.add_argument("--seed", type=int, default=1, help="of the split, the weights and the order of images (1)")
    parser.add_argument("--ordered", action="store_true", help="the same bits for every algorithm and on every run")
    parser.add_argument("--algo", default="auto", help="auto, oneshot, direct, staged, ring, tree, ...")
    parser.add_argument("--data", type=Path, default=HERE / "data" / "digits.csv.gz")
    parser.add_argument("--save", type=Path, help="write the final weights there, for numpy.load()")
    parser.add_argument("--check", action="store_true", help="fail unless all ranks end with the same weights")
    parser.add_argument("--require", type=float, default=0, help="fail if the test accuracy ends below that, in per cent")
    parser.add_argument("--quiet", action="store_true", help="the summary only")
    options = parser.parse_args()
    if options.epochs < 1 or options.batch < 1:
        parser.error("--epochs and --batch must be 1 or more")
    return options


def load(path: Path) -> Tuple[np.ndarray, np.ndarray]:
    """Pixels of 0..1 and labels."""
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else open(path)
    with opened as file:
        table = np.array(list(csv.reader(file)), dtype=np.int64)
    return (table[:, :-1] / 16).astype(np.float32), table[:, -1]


def share(count: int, comm: gradsync.Comm) -> slice:
    """This rank's part of count images: contiguous, and equal up to one."""
    return slice(count * comm.rank // comm.size, count * (comm.rank + 1) // comm.size)


class Layer:
    """Views of one layer's part of a flat array: its weights, then its biases."""

    def __init__(self, flat: np.ndarray, inputs: int, outputs: int) -> None:
        self.flat = flat
        self.weights = flat[: inputs * outputs].reshape(inputs, outputs)
        self.bias = flat[inputs * outputs :]


class Model:
    def __init__(self, sizes: List[int], ctx: gradsync.Context) -> None:
        self.shapes = list(zip(sizes, sizes[1:]))
        self.count = sum((inputs + 1) * outputs for inputs, outputs in self.shapes)
        self.flat = np.zeros(self.count, np.float32)
        self.velocity = np.zeros(self.count, np.float32)
        # Library memory: ranks of one machine reduce straight from and to it.
        self.gradient = ctx.alloc_array(self.count, "f32")
        self.layers = self.cut(self.flat)
        self.velocities = self.cut(self.velocity)
        self.buckets = self.cut(self.gradient)

    def cut(self, flat: np.ndarray) -> List[Layer]:
        layers, at = [], 0
        for inputs, outputs in self.shapes:
            end = at + (inputs + 1) * outputs
            layers.append(Layer(flat[at:end], inputs, outputs))
            at = end
        return layers

    def initialise(self, random: np.random.Generator) -> None:
        for layer in self.layers:
            limit = np.sqrt(6.0 / layer.weights.shape[0])
            layer.weights[...] = random.uniform(-limit, limit, layer.weights.shape)

    def forward(self, images: np.ndarray) -> List[np.ndarray]:
        """The input and every layer's output; the last are the scores."""
        active = [images]
        for layer in self.layers[:-1]:
            active.append(np.maximum(active[-1] @ layer.weights + layer.bias, 0))
        active.append(active[-1] @ self.layers[-1].weights + self.layers[-1].bias)
        return active


def loss_and_delta(scores: np.ndarray, labels: np.ndarray) -> Tuple[float, int, np.ndarray]:
    """Sum of the losses, number of right answers, and the loss by the scores."""
    rows = np.arange(len(labels))
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    loss = float(-np.log(np.maximum(odds[rows, labels], 1e-30)).sum())
    right = int((scores.argmax(axis=1) == labels).sum())
    odds[rows, labels] -= 1
    return loss, right, odds


class Trainer:
    def __init__(self, options: argparse.Namespace, ctx: gradsync.Context, comm: gradsync.Comm) -> None:
        self.options, self.comm = options, comm
        images, labels = load(options.data)
        order = np.random.default_rng(options.seed).permutation(len(images))
        self.images, self.labels = images[order], labels[order]
        self.train = len(images) * 4 // 5
        self.test = len(images) - self.train
        hidden = [int(size) for size in options.hidden.split(",")]
        self.model = Model([images.shape[1], *hidden, CLASSES], ctx)
        if comm.rank == 0:
            self.model.initialise(np.random.default_rng(options.seed))
        comm.broadcast(self.model.flat, root=0)  # one rank chooses: all start from the same bits
        self.step = 0
        self.steps = -(-self.train // options.batch) * options.epochs
        self.exposed = self.collectives = 0.0  # seconds, of this epoch
        self.last: Optional[gradsync.Report] = None

    def train_step(self, batch: np.ndarray) -> Tuple[float, int]:
        model, comm, options = self.model, self.comm, self.options
        mine = batch[share(len(batch), comm)]
        active = model.forward(self.images[mine])
        loss, right, delta = loss_and_delta(active[-1], self.labels[mine])
        requests: List[Any] = [None] * len(model.layers)
        for l in reversed(range(len(model.layers))):
            bucket = model.buckets[l]
            np.matmul(active[l].T, delta, out=bucket.weights)
            np.sum(delta, axis=0, out=bucket.bias)
            begin = time.perf_counter()
            # under way while the layers below are worked on; scaled to the mean over the whole batch
            requests[l] = comm.all_reduce_post(
                bucket.flat, op="sum", prescale=1.0 / len(batch), ordered=options.ordered, algo=options.algo
            )
            self.exposed += time.perf_counter() - begin
            if l > 0:
                delta = (delta @ model.layers[l].weights.T) * (active[l] > 0)
        rate = options.lr * (1 - self.step / self.steps)
        self.step += 1
        for l in reversed(range(len(model.layers))):
            begin = time.perf_counter()
            with requests[l] as request:
                request.wait()
                self.last = request.report()
            self.exposed += time.perf_counter() - begin
            self.collectives += self.last.measured_us / 1e6
            velocity = model.velocities[l].flat
            velocity *= options.momentum
            velocity -= np.float32(rate) * model.buckets[l].flat
            model.layers[l].flat += velocity
        return loss, right

    def test_share(self) -> int:
        part = share(self.test, self.comm)
        images = self.images[self.train :][part]
        scores = self.model.forward(images)[-1]
        return int((scores.argmax(axis=1) == self.labels[self.train :][part]).sum())

    def train_epoch(self, epoch: int) -> np.ndarray:
        """Loss, right answers in training and test, seconds, and of those in sync: sums over ranks."""
        order = np.random.default_rng([self.options.seed, epoch]).permutation(self.train)
        self.exposed = self.collectives = 0.0
        loss, right, begin = 0.0, 0, time.perf_counter()
        for first in range(0, self.train, self.options.batch):
            step_loss, step_right = self.train_step(order[first : first + self.options.batch])
            loss += step_loss
            right += step_right
        seconds = time.perf_counter() - begin
        sums = np.array([loss, right, self.test_share(), seconds, self.exposed, self.collectives])
        self.comm.all_reduce(sums)
        return sums


def run(options: argparse.Namespace, ctx: gradsync.Context, comm: gradsync.Comm) -> int:
    trainer = Trainer(options, ctx, comm)
    model, talk = trainer.model, comm.rank == 0
    transport = comm.info().transport
    ranks = "%d rank%s" % (comm.size, "" if comm.size == 1 else "s")
    if talk and not options.quiet:
        shape = "-".join(str(size) for size in [model.shapes[0][0]] + [outputs for _, outputs in model.shapes])
        print("%d training and %d test images; perceptron %s, %d parameters in %d buckets"
              % (trainer.train, trainer.test, shape, model.count, len(model.layers)))  # fmt: skip
        print("%s, transport %s, batch %d; Python with numpy %s, libgradsync %s"
              % (ranks, transport, options.batch, np.__version__, gradsync.library_version()))  # fmt: skip
        print("epoch    loss   train    test    images/s   sync: exposed  collectives")
    seconds = exposed = accuracy = 0.0
    for epoch in range(1, options.epochs + 1):
        loss, right, test_right, spent, waited, collectives = trainer.train_epoch(epoch)
        accuracy = 100 * test_right / trainer.test
        seconds += spent / comm.size
        exposed += waited / comm.size
        if talk and not options.quiet:
            print("%5d  %.4f  %5.1f %%  %5.1f %%  %10.0f  %12.1f %%  %9.1f %%"
                  % (epoch, loss / trainer.train, 100 * right / trainer.train, accuracy,
                     trainer.train / (spent / comm.size), 100 * waited / spent, 100 * collectives / spent),
                  flush=True)  # fmt: skip
        if not np.isfinite(loss):
            print("train_digits.py: the loss is no finite number any more: try a smaller --lr", file=sys.stderr)
            return 1
    digest = hashlib.sha256(model.flat.tobytes()).digest()
    if options.check:
        everyone = np.empty((comm.size, len(digest)), np.uint8)
        comm.all_gather(digest, everyone)
        if any(bytes(other) != digest for other in everyone):
            print("train_digits.py: the ranks end with different weights", file=sys.stderr)
            return 1
    if not talk:
        return 0
    if options.save:
        np.save(options.save, model.flat)
    print("test accuracy %.2f %% after %d epochs in %.2f s: %.0f images/s on %s over %s, "
          "%.1f %% of the time waiting for gradients; weights %s"
          % (accuracy, options.epochs, seconds, trainer.train * options.epochs / seconds, ranks, transport,
             100 * exposed / seconds, digest.hex()[:16]))  # fmt: skip
    if accuracy < options.require:
        print("train_digits.py: test accuracy %.2f %% is below the required %g %%" % (accuracy, options.require),
              file=sys.stderr)  # fmt: skip
        return 1
    return 0


def main() -> int:
    options = parse_arguments()
    try:
        with gradsync.Context() as ctx:
            launched = any(variable in os.environ for variable in LAUNCHED)
            with ctx.comm_from_env() if launched else ctx.comm() as comm:
                return run(options, ctx, comm)
    except gradsync.GradsyncError as error:
        print("train_digits.py: %s" % error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
