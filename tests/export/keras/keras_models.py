"""Makes small Keras models in every format, and Keras' own predictions for an image. Run by the Python of .venv-keras.

    keras_models.py FOLDER IMAGE

Writes the models into FOLDER, and ``predictions.npz`` with arrays by name. Weights are seeded.
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tf_keras

L = keras.layers
FOLDER, IMAGE = Path(sys.argv[1]), sys.argv[2]
FOLDER.mkdir(parents=True, exist_ok=True)
PREDICTIONS = {}


def moved(model):
    """The model with other weights than the first ones: of a fresh MobileNetV2 all outputs are equal."""
    source = np.random.default_rng(0)
    for weight in model.weights:
        value = np.asarray(weight)
        if value.dtype.kind != "f":  # the seed of augmentation
            continue
        if "moving_variance" in weight.name or "gamma" in weight.name:
            value = source.uniform(0.5, 1.5, value.shape)
        elif value.ndim == 1:
            value = source.normal(0, 0.1, value.shape)
        else:
            value = source.normal(0, np.sqrt(2 / np.prod(value.shape[:-1])), value.shape)
            if "depthwise" in weight.path:
                value = source.normal(0, 0.4, value.shape)
        weight.assign(value.astype(np.float32))
    return model


def pixels(height, width, interpolation="bilinear", color_mode="rgb"):
    """As Keras' own loader reads and resizes, float32 [1, height, width, C] of 0 to 255."""
    image = keras.utils.load_img(IMAGE, color_mode, target_size=(height, width), interpolation=interpolation)
    return keras.utils.img_to_array(image)[None]


def cnn():
    given = keras.Input((64, 64, 3))
    x = keras.Sequential([L.RandomFlip("horizontal"), L.RandomRotation(0.1)])(given)
    x = L.Rescaling(1 / 127.5, offset=-1)(x)
    for filters in (8, 16):
        x = L.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = L.BatchNormalization()(x)
        x = L.MaxPooling2D()(x)
    x = L.Dropout(0.3)(L.GlobalAveragePooling2D()(x))
    return keras.Model(given, L.Dense(4, activation="softmax")(x), name="cnn")


def unet(height, width, classes, activation=None, name="unet"):
    given = keras.Input((height, width, 3))
    a = L.Conv2D(8, 3, padding="same", activation="relu")(given)
    b = L.Conv2D(16, 3, padding="same", activation="relu")(L.MaxPooling2D()(a))
    x = L.Concatenate()([L.Conv2DTranspose(8, 2, strides=2)(b), L.UpSampling2D(2, interpolation="bilinear")(b), a])
    return keras.Model(given, L.Conv2D(classes, 1, activation=activation)(x), name=name)


model = moved(cnn())
model.save(FOLDER / "cnn.keras")
model.save(FOLDER / "cnn.h5")
model.export(FOLDER / "training", verbose=False)  # Keras 3.15 exports augmentation, and all with it, as in training
archive = keras.export.ExportArchive()
archive.track(model)
spec = tf.TensorSpec((None, 64, 64, 3), tf.float32)
archive.add_endpoint("serve", lambda images: model(images, training=False), input_signature=[spec])
archive.write_out(FOLDER / "cnn_exported", verbose=False)
PREDICTIONS["cnn"] = model.predict(pixels(64, 64), verbose=0)[0]
PREDICTIONS["cnn_nearest"] = model.predict(pixels(64, 64, "nearest"), verbose=0)[0]
# As image_dataset_from_directory resizes.
whole = tf.io.decode_image(Path(IMAGE).read_bytes(), channels=3, expand_animations=False)
PREDICTIONS["cnn_dataset"] = model.predict(tf.image.resize(whole, (64, 64))[None], verbose=0)[0]

model = moved(unet(64, 96, 3))
model.save(FOLDER / "unet.keras")
model.export(FOLDER / "unet_exported", verbose=False)
PREDICTIONS["unet"] = model.predict(pixels(64, 96) / 255, verbose=0)[0]

model = moved(unet(64, 96, 1, name="binary_unet"))
model.save(FOLDER / "binary_unet.keras")
PREDICTIONS["binary_unet"] = model.predict(pixels(64, 96) / 255, verbose=0)[0]

model = moved(unet(None, None, 3, "softmax", name="any_size"))
model.save(FOLDER / "any_size.keras")
PREDICTIONS["any_size"] = model.predict(pixels(64, 96) / 255, verbose=0)[0]

model = moved(
    keras.Sequential(
        [keras.Input((28, 28, 1)), L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(1, activation="sigmoid")]
    )
)
model.save(FOLDER / "grey.keras")
PREDICTIONS["grey"] = model.predict(pixels(28, 28, color_mode="grayscale") / 255, verbose=0)[0]

model = moved(keras.applications.MobileNetV2(weights=None, input_shape=(96, 96, 3), classes=10))
model.save(FOLDER / "mobilenet.keras")
tf.saved_model.save(model, FOLDER / "mobilenet_saved")
prepared = keras.applications.mobilenet_v2.preprocess_input(pixels(96, 96))
PREDICTIONS["mobilenet"] = model.predict(prepared, verbose=0)[0]

# Caffe's order and means, two heads, a batch that is fixed.
given = keras.Input(batch_shape=(1, 32, 32, 3))
x = L.GlobalAveragePooling2D()(L.Conv2D(8, 3, activation="relu")(given))
model = moved(keras.Model(given, [L.Dense(3, name="kind")(x), L.Dense(5, name="age")(x)], name="heads"))
for head in model.layers[-2:]:  # of pixels up to 255: logits that softmax does not saturate
    head.kernel.assign(head.kernel * 0.02)
model.save(FOLDER / "heads.keras")
prepared = keras.applications.resnet50.preprocess_input(pixels(32, 32))
PREDICTIONS["heads"] = np.asarray(tf.nn.softmax(model.predict(prepared, verbose=0)[0][0]))

# What Keras 2 wrote: Keras 3 refuses its DepthwiseConv2D ("Unrecognized keyword arguments: groups").
model = tf_keras.Sequential(
    [
        tf_keras.layers.Input((32, 32, 3)),
        tf_keras.layers.DepthwiseConv2D(3, activation="relu"),
        tf_keras.layers.GlobalAveragePooling2D(),
        tf_keras.layers.Dense(3, activation="softmax"),
    ]
)
model.set_weights([np.random.default_rng(1).normal(0, 2, each.shape) for each in model.get_weights()])
model.save(FOLDER / "second.h5")
PREDICTIONS["second"] = model.predict(pixels(32, 32) / 127.5 - 1, verbose=0)[0]

# What is to be refused.
given = keras.Input((16, 16, 3))
x = L.GlobalAveragePooling2D()(L.Lambda(lambda t: t * 2.0)(given))
model = keras.Model(given, L.Dense(3)(x))
model.save(FOLDER / "lambda.keras")
model.save(FOLDER / "lambda.h5")
model.save_weights(FOLDER / "only.weights.h5")


class Own(L.Layer):
    def call(self, values):
        return values * 2.0


model = keras.Model(given, L.Dense(3)(L.GlobalAveragePooling2D()(Own()(given))))
model.save(FOLDER / "own.keras")
model.export(FOLDER / "own_exported", verbose=False)
model.save(FOLDER / "whole.keras")
data = (FOLDER / "whole.keras").read_bytes()
(FOLDER / "cut.keras").write_bytes(data[: len(data) // 2])
(FOLDER / "cut.h5").write_bytes((FOLDER / "cnn.h5").read_bytes()[:3000])
(FOLDER / "text.keras").write_text("no model")


class Writes(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None, 16, 16, 3), tf.float32)])
    def serve(self, images):
        tf.io.write_file(str(FOLDER / "written"), "x")
        return tf.reduce_mean(images, (1, 2))


writes = Writes()
tf.saved_model.save(writes, FOLDER / "writes", signatures=writes.serve)
(FOLDER / "written").unlink(missing_ok=True)

np.savez(FOLDER / "predictions.npz", **PREDICTIONS)
