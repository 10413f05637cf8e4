"""Top-1 and top-5 accuracy."""

import numpy as np
import pytest
import torch

from botnet.classification.metric import Accuracy


def test_accuracy_of_any_number_of_classes():
    generator = torch.Generator().manual_seed(0)
    for classes in (3, 12):
        metric, right1, right5 = Accuracy(classes), 0, 0
        of_class = {label: [] for label in range(classes)}
        for size in (7, 1, 4):
            logits = torch.randn(size, classes, generator=generator)
            labels = torch.randint(classes - 1, (size,), generator=generator)  # none of the last class
            metric.update(logits, labels)
            for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
                ranking = sorted(range(classes), key=row.__getitem__, reverse=True)
                right1 += ranking[0] == label
                right5 += label in ranking[:5]
                of_class[label].append(ranking[0] == label)
        values = metric.compute()
        assert float(values["top1"]) == pytest.approx(100 * right1 / 12)
        assert float(values["top5"]) == pytest.approx(100 * right5 / 12)
        for label, hits in of_class.items():
            expected = 100 * np.mean(hits) if hits else float("nan")
            assert float(values["per_class"][label]) == pytest.approx(expected, nan_ok=True)
