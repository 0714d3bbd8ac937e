"""The original's procedure in Keras, as a process that times what it is asked for: ``python keras_peer.py SIZES``.

Written from the published description of networks and steps, to be measured against; nothing else uses it, and it needs
TensorFlow alone. Each line on standard input names something to do; the answer, on standard output, is a line of JSON
with the seconds that it took. SIZES are the arguments of `Peer` as JSON. Two benchmarks, of training and of inference,
start it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from tensorflow import keras

layers = keras.layers
N_SUBSETS = 4


def weights() -> Any:
    return keras.initializers.RandomNormal(0.0, 0.02)


def adam(rate: float) -> Any:
    return keras.optimizers.Adam(learning_rate=rate, beta_1=0.5, beta_2=0.999, epsilon=1e-7)


def conv(x: Any, channels: int, stride: int) -> Any:
    return layers.Conv2D(channels, 4, strides=stride, padding="same", kernel_initializer=weights())(x)


def unconv(x: Any, channels: int, stride: int) -> Any:
    return layers.Conv2DTranspose(channels, 4, strides=stride, padding="same", kernel_initializer=weights())(x)


def norm(x: Any) -> Any:
    return layers.BatchNormalization()(x, training=True)


def leaky(x: Any) -> Any:
    # The argument's name differs between Keras 2 and 3; its place does not.
    return layers.LeakyReLU(0.2)(x)


def build_generator(side: int, width: int, n_features: int) -> Any:
    source = keras.Input((side, side, 1))
    skips = []
    x = source
    for level in range(side.bit_length() - 2):
        x = conv(x, width * min(2**level, 8), 2)
        x = leaky(norm(x) if level else x)
        skips.append(x)
    x = layers.Activation("relu")(conv(x, n_features, 2))
    features = layers.Flatten()(x)
    for level, skip in enumerate(reversed(skips)):
        x = norm(unconv(x, skip.shape[-1], 2))
        if level < 2:
            x = layers.Dropout(0.5)(x, training=True)
        x = layers.Activation("relu")(layers.Concatenate()([x, skip]))
    x = layers.Activation("relu")(layers.Concatenate()([norm(unconv(x, width // 2, 2)), source]))
    for share in (4, 8, 16):
        x = layers.Activation("relu")(norm(unconv(x, max(1, width // share), 1)))
    return keras.Model(source, [unconv(x, 1, 1), features])


def build_discriminator(side: int, width: int) -> Any:
    source, target = keras.Input((side, side, 1)), keras.Input((side, side, 1))
    x = leaky(conv(layers.Concatenate()([source, target]), width, 2))
    for channels, stride in ((2 * width, 2), (4 * width, 2), (8 * width, 1), (8 * width, 1)):
        x = leaky(layers.BatchNormalization()(conv(x, channels, stride)))
    out = layers.Activation("sigmoid")(conv(x, 1, 1))
    return keras.Model([source, target], out)


def build_image_classifier(side: int, width: int, n_classes: int) -> Any:
    image = keras.Input((side, side, 1))
    x = leaky(conv(image, width, 2))
    x = leaky(layers.BatchNormalization()(conv(x, 2 * width, 2)))
    for channels, stride in ((4 * width, 2), (8 * width, 1), (8 * width, 1)):
        x = layers.MaxPooling2D(2, padding="same")(x)
        x = leaky(layers.BatchNormalization()(conv(x, channels, stride)))
    x = layers.Flatten()(layers.MaxPooling2D(2, padding="same")(x))
    return keras.Model(image, layers.Dense(n_classes, "softmax")(layers.Dense(128, "relu")(x)))


def build_feature_classifier(n_inputs: int, hidden: tuple[int, ...], n_classes: int) -> Any:
    features = keras.Input((n_inputs,))
    x = features
    for units in hidden:
        x = layers.Dense(units, "relu")(x)
    return keras.Model(features, layers.Dense(n_classes, "softmax")(x))


class Peer:
    """Networks, data and what can be timed.

    Parameters
    ----------
    side, base_width, n_features, minibatch_size, n_classes, n_cells : int
        `n_cells` are those of the classifier fits and of predict.
    """

    def __init__(
        self, side: int, base_width: int, n_features: int, minibatch_size: int, n_classes: int, n_cells: int
    ) -> None:
        self.sizes = side, base_width, n_features, n_classes
        rng = np.random.default_rng(0)
        n = minibatch_size
        self.bf, self.qpi = rng.normal(size=(2, n, side, side, 1)).astype(np.float32)
        self.cells = rng.normal(size=(n_cells, side, side, 1)).astype(np.float32)
        self.features = rng.normal(size=(n_cells, n_features)).astype(np.float32)
        self.labels = keras.utils.to_categorical(rng.integers(n_classes, size=n_cells), n_classes)
        self.types = keras.utils.to_categorical(rng.integers(n_classes, size=n), n_classes)
        self.fool = keras.utils.to_categorical(np.zeros(n, int), n_classes)
        patches = side // 8
        self.real = np.ones((n, patches, patches, 1), np.float32)
        self.fake = np.zeros((n, patches, patches, 1), np.float32)
        self.generator = build_generator(side, base_width, n_features)
        self.discriminator = build_discriminator(side, base_width)
        self.discriminator.compile(loss="binary_crossentropy", optimizer=adam(1e-4), loss_weights=[0.5])
        self.discriminator.train_on_batch([self.bf, self.qpi], self.real)  # compiled while it is trainable
        self.stage_1: Any = None
        self.stage_2: Any = None
        self.classifiers: Any = None

    def frozen(self, network: Any) -> Any:
        for layer in network.layers:
            layer.trainable = False
        return network

    def build_stage_1(self) -> None:
        side = self.sizes[0]
        source = keras.Input((side, side, 1))
        image, _ = self.generator(source)
        verdict = self.frozen(self.discriminator)([source, image])
        self.stage_1 = keras.Model(source, [verdict, image])
        self.stage_1.compile(loss=["binary_crossentropy", "mae"], optimizer=adam(2e-4), loss_weights=[1, 100])

    def build_stage_2(self) -> None:
        side, width, n_features, n_classes = self.sizes
        cell_image, batch_image = (self.frozen(build_image_classifier(side, width, n_classes)) for _ in range(2))
        cell = self.frozen(build_feature_classifier(n_features, (250, 100, 50, 25), n_classes))
        per_subset = n_features // N_SUBSETS
        batch = [self.frozen(build_feature_classifier(per_subset, (75, 50, 25), n_classes)) for _ in range(N_SUBSETS)]
        order = np.random.default_rng(1).permutation(n_features)
        self.subsets = np.split(order[: per_subset * N_SUBSETS], N_SUBSETS)
        source = keras.Input((side, side, 1))
        image, features = self.generator(source)
        outputs = [self.frozen(self.discriminator)([source, image]), cell_image(image), cell(features)]
        outputs.append(batch_image(image))
        for subset, network in zip(self.subsets, batch, strict=True):
            rows = tf.constant(subset)
            outputs.append(network(layers.Lambda(lambda x, rows=rows: tf.gather(x, rows, axis=1))(features)))
        self.stage_2 = keras.Model(source, [*outputs, image])
        losses = ["binary_crossentropy", *["categorical_crossentropy"] * (3 + N_SUBSETS), "mae"]
        self.stage_2.compile(loss=losses, optimizer=adam(2e-4), loss_weights=[1, *[100] * (3 + N_SUBSETS), 300])
        self.readers = cell_image, cell, batch_image, batch

    def build_classifiers(self) -> None:
        n_features, n_classes = self.sizes[2:]
        self.classifiers = []
        for n_inputs, hidden, rate in (
            *[(n_features // N_SUBSETS, (75, 50, 25), 0.05)] * N_SUBSETS,
            (n_features, (250, 100, 50, 25), 1e-3),
        ):
            network = build_feature_classifier(n_inputs, hidden, n_classes)
            network.compile(loss="categorical_crossentropy", optimizer=adam(rate), metrics=["accuracy"])
            self.classifiers.append(network)

    # What can be timed ------------------------------------------------------------------------------------------

    def _discriminator_steps(self) -> None:
        image, _ = self.generator.predict(self.bf, verbose=0)
        self.discriminator.train_on_batch([self.bf, self.qpi], self.real)
        self.discriminator.train_on_batch([self.bf, image], self.fake)

    def stage_1_step(self) -> None:
        self._discriminator_steps()
        self.stage_1.train_on_batch(self.bf, [self.real, self.qpi])

    def stage_2_step(self) -> None:
        self._discriminator_steps()
        truth = [self.real, self.types, self.types, *[self.fool] * (1 + N_SUBSETS), self.qpi]
        self.stage_2.train_on_batch(self.bf, truth)

    def stage_2_step_printing(self) -> None:
        """Also the predictions that the original makes for its progress line."""
        self.stage_2_step()
        image, features = self.generator.predict(self.bf, verbose=0)
        cell_image, cell, batch_image, batch = self.readers
        for network, seen in ((cell_image, image), (cell, features), (batch_image, image)):
            network.predict(seen, verbose=0)
        for subset, network in zip(self.subsets, batch, strict=True):
            network.predict(features[:, subset], verbose=0)

    def predict(self) -> None:
        self.generator.predict(self.cells, verbose=0)

    def refresh(self) -> None:
        """Ten epochs of the batch classifiers of a refresh, and of the cell-type classifier."""
        per_subset = self.features.shape[1] // N_SUBSETS
        for index, network in enumerate(self.classifiers):
            whole = index == N_SUBSETS
            seen = self.features if whole else self.features[:, index * per_subset : (index + 1) * per_subset]
            network.fit(seen, self.labels, batch_size=32, epochs=10, validation_split=0.1, verbose=0)


def main() -> None:
    """Build, then answer line by line."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what Keras prints is no answer
    peer = Peer(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        what, _, prepare = line.strip().partition(" ")
        if prepare:
            getattr(peer, prepare)()
        start = time.perf_counter()
        if what != "ready":
            getattr(peer, what)()
        answer = {"seconds": time.perf_counter() - start, "version": f"TensorFlow {tf.__version__}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
