"""The head of a linear probe, against scikit-learn's logistic regression; test_probing.py has it from end to end."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.training import probe
from vit.training.classification import ClassificationTask
from vit.training.multilabel import MultiLabelTask
from vit.training.probe import DECAY, fit_probe

SIZES = {"image_size": (16, 16), "patch_size": (8, 8), "embed_dim": 16, "depth": 2, "num_heads": 2}


def task_of(kind: type[ClassificationTask], classes: int, **options: object) -> ClassificationTask:
    model = Classifier(image_encoder(**SIZES), classes, multilabel=kind is MultiLabelTask)
    return kind(model, lr=1e-3, weight_decay=0.0, warmup_epochs=0, **options)


def test_the_head_is_that_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "ITERATIONS", 1000)
    task = task_of(ClassificationTask, 3)
    features = torch.randn(60, 16) * torch.logspace(-2, 2, 16) + 5
    targets = (features[:, 3] > 5).long() + (features[:, 12] > 5).long()
    fit_probe(task, features, targets)
    scaled = StandardScaler().fit_transform(features.double().numpy())
    reference = LogisticRegression(C=1 / (60 * DECAY), tol=1e-10, max_iter=10_000).fit(scaled, targets.numpy())
    expected = reference.decision_function(scaled)
    found = task.model.head(features).detach().double().numpy()
    found, expected = (each - each.mean(axis=1, keepdims=True) for each in (found, expected))  # a shift of all is free
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert (found.argmax(axis=1) == targets.numpy()).mean() > 0.8


def test_several_labels_weights_and_smoothing_count_as_in_the_loss_of_training() -> None:
    # One feature that is 1 in half of the images, and classes that follow it: the bias of a class that never changes
    # is where its smoothed share is met, log(0.95 / 0.05).
    task = task_of(MultiLabelTask, 2, label_smoothing=0.1)
    features = torch.zeros(40, 16)
    features[::2] = 1
    targets = torch.stack([features[:, 0], torch.ones(40)], dim=1)
    fit_probe(task, features, targets, torch.where(features[:, 0] == 1, 3.0, 1.0))
    logits = task.model.head(features).detach()
    torch.testing.assert_close(logits[:, 1], torch.full((40,), 2.944439), rtol=0, atol=1e-3)
    assert (logits[::2, 0] > 0).all()
    assert (logits[1::2, 0] < 0).all()
    assert logits[::2, 0].mean() > -logits[1::2, 0].mean()  # it heeds three times as much
