"""Figures of the demo, by judges that share nothing with the model: a scikit-learn classifier and pixel distances."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tasks.demo import digits, tasks
from tasks.demo.codecs import LEVELS, Codec, Pixels
from tasks.demo.digits import Digits, Form


def classifier(train: Digits) -> Any:
    """A support vector machine fitted on the training split only."""
    from sklearn.svm import SVC

    return SVC(gamma=0.001, C=10).fit(train.images.flatten(1).numpy(), train.labels.numpy())


def accuracy(judge: Any, images: Tensor, labels: Tensor) -> float:
    """Share of images judged to be their label."""
    return float(judge.score(images.flatten(1).numpy(), labels.numpy()))


def spread(images: Tensor, labels: Tensor) -> float:
    """Mean Euclidean pixel distance between two images of the same digit, averaged over digits."""
    parts = [torch.pdist(images[labels == y].flatten(1).double()).mean() for y in labels.unique()]
    return float(torch.stack(parts).mean())


def copies(images: Tensor, train: Tensor) -> float:
    """Share of images that equal a training image pixel for pixel."""
    nearest = torch.cdist(images.flatten(1).double(), train.flatten(1).double(), p=1).amin(1)
    return float((nearest < 0.5).double().mean())


def reconstruction(codec: Codec, judge: Any, test: Digits) -> dict[str, float]:
    """What a codec loses: root mean square error as a share of the range, and the judge's accuracy on what comes back."""
    back = codec.decode(codec.encode(test.images))
    error = (back - test.images).double().square().mean().sqrt() / (LEVELS - 1)
    accurate = accuracy(judge, back, test.labels)
    return {"reconstruction_error": float(error), "classifier_accuracy_on_reconstructions": accurate}


def figures(model: Any, form: Form, train: Digits, test: Digits, seed: int, count: int = 500) -> dict[str, float]:
    """Everything `runs/demo/metrics.json` reports of the weights: `count` images, equally many per digit."""
    judge = classifier(train)
    labels = torch.arange(count) % 10
    texts = tasks.read(model, form, test.images)
    named = torch.tensor([digits.label_of(text) for text in texts])
    out = {
        "caption_accuracy": float((named == test.labels).double().mean()),
        "classifier_accuracy_on_real": accuracy(judge, test.images, test.labels),
    }
    if not isinstance(form.codec, Pixels):
        out |= reconstruction(form.codec, judge, test)
    real = spread(test.images, test.labels)
    for steps in (64, 16):
        images = tasks.draw(model, form, labels, steps, seed)
        out[f"digit_accuracy_{steps}"] = accuracy(judge, images, labels)
        out[f"spread_{steps}"] = spread(images, labels) / real
        out[f"training_copies_{steps}"] = copies(images, train.images)
    return out
