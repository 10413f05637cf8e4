"""The losses of validation: those of training on the same images, whatever the batch."""

import copy

import pytest
import torch
from torch import nn

import botnet
from botnet.detection.datamodule import CocoDataModule
from botnet.detection.datasets import collate
from botnet.detection.validation_loss import EVERY, ValidationLoss
from botnet.training.seeding import generator, run_seed
from tests.support.detector import DETECTOR


@pytest.fixture(scope="module", params=[True, False], ids=["masks", "boxes"])
def setting(request, digits):
    """A detector with lively norms in evaluation mode, and the data."""
    torch.manual_seed(0)
    options = {key: value for key, value in DETECTOR.items() if key != "masks"}
    build = botnet.mask_rcnn if request.param else botnet.faster_rcnn
    detector = build(num_classes=10, canvas=64, **options)
    for norm in detector.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.1, 0.1)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    files = ("instances_train.json", "train", "instances_val.json", "val")
    data = CocoDataModule(
        *(digits / name for name in files), canvas=64, num_workers=0, batch_size=1, masks=request.param
    )
    return detector.eval(), data


def measured(detector, data, order):
    loss = ValidationLoss(detector, data)
    for index in order:
        image, target = data.val_set[index]
        loss.update(image, target["image_id"])
    return loss.compute(torch.device("cpu"))


def test_losses_are_those_of_training_with_running_statistics(setting):
    detector, data = setting
    trained = copy.deepcopy(detector).train()
    for norm in trained.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    train_set = ValidationLoss(detector, data)._dataset
    expected = []
    for index in range(0, len(data.val_set), EVERY):
        image, target = train_set[0, index]
        torch.testing.assert_close(image, data.val_set[index][0])  # nothing is augmented
        seed = generator(run_seed(), 0, target["image_id"]).initial_seed()
        expected.append(trained(collate([(image, target)])[0], [target], [target["valid"]], [seed]))
    losses = measured(detector, data, range(len(data.val_set)))
    assert set(losses) == {"loss", *expected[0]}
    for name in expected[0]:
        mean = torch.stack([found[name] for found in expected]).mean()
        torch.testing.assert_close(losses[name], mean.detach())
        assert losses[name] > 0
    torch.testing.assert_close(losses["loss"], sum(losses[name] for name in expected[0]))


def test_losses_do_not_depend_on_the_order_and_leave_the_detector_as_it_is(setting):
    detector, data = setting
    before = copy.deepcopy(detector.state_dict())
    random = torch.get_rng_state()
    one = measured(detector, data, range(len(data.val_set)))
    two = measured(detector, data, reversed(range(len(data.val_set))))
    torch.testing.assert_close(one, two)
    assert not any(module.training for module in detector.modules())
    assert torch.equal(random, torch.get_rng_state())
    for name, tensor in detector.state_dict().items():
        assert torch.equal(tensor, before[name])
