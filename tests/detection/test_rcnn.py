"""The detector against loops written from its definitions, and edge cases."""

import json
import math

import pytest
import timm
import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList

import botnet  # noqa: F401  (registers the networks)
from botnet.detection import faster_rcnn, mask_rcnn
from botnet.detection.rcnn import RCNN
from botnet.detection.roi_heads import RoIAlign, mask_targets, roi_losses
from botnet.detection.rpn import AnchorMatcher, Anchors
from botnet.detection.sampler import Sampler
from botnet.errors import ConfigError
from tests.support.detector import MASKS, SMALL, small_detector, targets_for
from tests.support.synchronisations import Synchronisations


def test_anchors_are_centred_on_their_cells():
    anchors = Anchors((4, 8), scale=8)
    images = ImageList(torch.zeros(2, 3, 12, 20), [(12, 20)] * 2)
    features = [torch.zeros(2, 1, 3, 5, dtype=torch.bfloat16), torch.zeros(2, 1, 2, 3, dtype=torch.bfloat16)]
    expected = []
    for stride, rows, columns in ((4, 3, 5), (8, 2, 3)):
        for row in range(rows):
            for column in range(columns):
                for ratio in (1.0, 2.0, 0.5):
                    side = 8 * stride
                    height, width = side * math.sqrt(ratio), side / math.sqrt(ratio)
                    y, x = stride * (row + 0.5), stride * (column + 0.5)
                    expected.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    found = anchors(images, features)
    assert len(found) == 2
    assert found[0].dtype == torch.float32  # bfloat16 features must not round the coordinates
    torch.testing.assert_close(found[0], torch.tensor(expected))


def bilinear(mask, y, x):
    """Value of a mask at a point, pixel i having its centre at i + 0.5, in plain float64."""
    height, width = len(mask), len(mask[0])
    y, x = y - 0.5, x - 0.5
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            weight = (1 - abs(y - row)) * (1 - abs(x - column))
            total += weight * mask[min(max(row, 0), height - 1)][min(max(column, 0), width - 1)]
    return total


def test_mask_targets_sample_the_cells_centres():
    generator = torch.Generator().manual_seed(1)
    masks = (torch.rand(3, 20, 30, generator=generator) > 0.5).to(torch.uint8)
    boxes = torch.tensor([[2.3, 1.1, 25.7, 18.2], [0.0, 0.0, 30.0, 20.0], [10.0, 5.0, 12.5, 6.0]])
    matched = torch.tensor([2, 0, 1])
    found = mask_targets(masks, boxes, matched, 7)
    for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        mask = masks[matched[index]].tolist()
        for row in range(7):
            for column in range(7):
                y = y1 + (row + 0.5) / 7 * (y2 - y1)
                x = x1 + (column + 0.5) / 7 * (x2 - x1)
                value = bilinear(mask, y, x)
                if abs(value - 0.5) > 1e-4:  # an exact half may round either way
                    assert found[index, row, column] == float(value > 0.5)


def huber(error, delta):
    error = abs(error)
    return 0.5 * error**2 if error <= delta else delta * (error - 0.5 * delta)


def test_roi_losses_against_loops():
    generator = torch.Generator().manual_seed(2)
    logits, deltas = torch.randn(5, 4, generator=generator), 2 * torch.randn(5, 16, generator=generator)
    targets, labels = torch.randn(5, 4, generator=generator), torch.tensor([0, 2, 0, 3, 1])
    cross_entropy, box, coordinates = 0.0, 0.0, 0
    for i, label in enumerate(labels.tolist()):
        exponents = [math.exp(value) for value in logits[i].tolist()]
        cross_entropy -= math.log(exponents[label] / sum(exponents)) / 5
        for j in range(4 if label else 0):
            box += huber(float(deltas[i, 4 * label + j] - targets[i, j]), 1.0)
            coordinates += 1
    mask_logits, truth = torch.randn(3, 2, 2, generator=generator), torch.ones(3, 2, 2)
    mask = sum(math.log(1 + math.exp(-logit)) for logit in mask_logits.flatten().tolist()) / 12
    losses = roi_losses(logits, deltas, labels, targets, mask_logits, truth)
    assert float(losses["class"]) == pytest.approx(cross_entropy, rel=1e-5)
    assert float(losses["box"]) == pytest.approx(box / coordinates, rel=1e-5)
    assert float(losses["mask"]) == pytest.approx(mask, rel=1e-5)
    assert set(roi_losses(logits, deltas, labels, targets, None, None)) == {"class", "box"}


def test_rpn_losses_against_loops():
    rpn = small_detector().rpn
    # The first positive of each image is not sampled: its score is not learnt from, its box is.
    picked = torch.tensor([False, True, True, True, True, True])
    rpn.fg_bg_sampler = lambda labels: (
        [(label == 1) & picked for label in labels],
        [(label == 0) & picked for label in labels],
    )
    rpn.fg_bg_sampler.batch_size_per_image = 5
    rpn.level_sizes = [4, 2]
    generator = torch.Generator().manual_seed(3)
    labels = [torch.tensor([1.0, 0, -1, 1, 0, 1]), torch.tensor([1.0, 0, 1, -1, -1, 0])]
    logits = torch.randn(12, 1, generator=generator)
    deltas = torch.randn(12, 4, generator=generator)
    targets = [torch.randn(6, 4, generator=generator) for _ in labels]
    score, levels = 0.0, [[], []]
    for image in range(2):
        for anchor in range(6):
            label = float(labels[image][anchor])
            if label >= 0 and anchor > 0:
                probability = 1 / (1 + math.exp(-float(logits[6 * image + anchor])))
                score -= math.log(probability if label else 1 - probability)
            if label == 1:
                for j in range(4):
                    error = float(deltas[6 * image + anchor, j] - targets[image][anchor, j])
                    levels[int(anchor >= 4)].append(huber(error, 1 / 9))
    found_score, found_box = rpn.compute_loss(logits, deltas, labels, targets)
    assert float(found_score) == pytest.approx(score / (2 * 5), rel=1e-5)
    assert float(found_box) == pytest.approx(sum(sum(e) / len(e) for e in levels), rel=1e-5)


def test_an_object_has_one_best_anchor():
    quality = torch.tensor(
        [
            [0.75, 0.00, 0.20, 0.20, 0.00],  # one good anchor
            [0.00, 0.10, 0.25, 0.25, 0.00],  # no good one, and two equals: the first is its own
            [0.00, 0.50, 0.00, 0.00, 0.00],  # one that is neither good nor bad, but its best
            [0.00, 0.50, 0.00, 0.00, 0.00],  # wants the same: the first object keeps it
        ]
    )
    assert AnchorMatcher(0.7, 0.3)(quality).tolist() == [0, 2, 1, -1, -1]
    # An anchor that suits one object better is another's only one.
    assert AnchorMatcher(0.7, 0.3)(torch.tensor([[0.9, 0.8], [0.0, 0.4]])).tolist() == [0, 1]


def test_the_sampler_keeps_its_numbers_and_each_image_its_own_draw():
    sampler = Sampler(8, positive_fraction=0.25)
    labels = torch.tensor([2.0] * 5 + [0.0] * 20 + [-1.0] * 5)
    few = torch.tensor([1.0] + [0.0] * 3 + [-1.0] * 26)

    def drawn(images, seeds):
        sampler.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        positive, negative = sampler(images)
        return list(zip(positive, negative, strict=True))

    (positive, negative), (few_positive, few_negative) = drawn([labels, few], [1, 2])
    assert (int(positive.sum()), int(negative.sum())) == (2, 6)
    assert positive[:5].sum() == 2
    assert negative[5:25].sum() == 6
    assert (int(few_positive.sum()), int(few_negative.sum())) == (1, 3)
    for found, alone in zip((positive, negative), drawn([labels], [1])[0], strict=True):
        assert torch.equal(found, alone)  # whatever images are beside it
    assert not torch.equal(negative, drawn([labels], [3])[0][1])
    # Every candidate has its turn.
    turns = sum(torch.stack(drawn([labels], [seed])[0]).int() for seed in range(200))
    assert (turns[0, :5] > 40).all()
    assert (turns[1, 5:25] > 30).all()


def test_boxes_are_pooled_from_the_level_of_their_size():
    pool = RoIAlign(2, (4, 8, 16, 32, 64), canonical_size=224)
    features = {
        f"p{level}": torch.full((1, 1, 1024 >> level, 1024 >> level), float(level)) for level in range(2, 7)
    }
    sides = [20, 111, 113, 223, 225, 447, 449, 895, 897, 1000]
    boxes = torch.tensor([[0.0, 0.0, side, side] for side in sides])
    found = pool(features, [boxes], [])
    assert found[:, 0, 0, 0].tolist() == [2, 2, 3, 3, 4, 4, 5, 5, 6, 6]


def test_pooling_takes_one_sample_at_the_centre_of_each_bin():
    generator = torch.Generator().manual_seed(5)
    level = torch.randn(1, 1, 16, 16, generator=generator)
    features = {f"p{i}": level if i == 2 else level[:, :, :1, :1] for i in range(2, 7)}
    x1, y1, x2, y2 = box = (9.0, 6.0, 31.0, 40.0)
    found = RoIAlign(7, (4, 8, 16, 32, 64), 224)(features, [torch.tensor([box])], [])[0, 0]
    for row in range(7):
        for column in range(7):
            # A feature stands at the corner of its cell: no half is subtracted ([tpu]), as bilinear() does.
            y = (y1 + (row + 0.5) / 7 * (y2 - y1)) / 4 + 0.5
            x = (x1 + (column + 0.5) / 7 * (x2 - x1)) / 4 + 0.5
            assert float(found[row, column]) == pytest.approx(bilinear(level[0, 0].tolist(), y, x), abs=1e-5)


def test_numbers_of_the_papers_codebase():
    detector = mask_rcnn("botnet26", 80)
    rpn, heads = detector.rpn, detector.roi_heads
    assert rpn.anchor_generator.strides == (4, 8, 16, 32, 64)
    assert rpn.anchor_generator.ratios == (1.0, 2.0, 0.5)
    assert rpn.anchor_generator.scale == 8
    assert [type(m) for m in rpn.head.conv.modules()].count(nn.BatchNorm2d) == 0
    assert (rpn._pre_nms_top_n, rpn._post_nms_top_n) == (
        {"training": 2000, "testing": 1000},
        {"training": 1000, "testing": 1000},
    )
    assert (rpn.proposal_matcher.high_threshold, rpn.proposal_matcher.low_threshold) == (0.7, 0.3)
    assert (rpn.fg_bg_sampler.batch_size_per_image, rpn.fg_bg_sampler.positive_fraction) == (256, 0.5)
    assert (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction) == (512, 0.25)
    assert heads.box_coder.weights == (10.0, 10.0, 5.0, 5.0)
    assert (heads.box_roi_pool.output_size, heads.mask_roi_pool.output_size) == ((7, 7), (14, 14))
    assert [layer.out_features for layer in heads.box_head.children()] == [1024, 1024]
    assert heads.box_predictor.cls_score.out_features == 81
    assert len(heads.mask_head) == 4
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)
    assert detector.fpn.pyramid.extra_blocks.conv.stride == (2, 2)


def test_every_norm_can_be_synchronised():
    detector = nn.SyncBatchNorm.convert_sync_batchnorm(small_detector())
    norms = [m for m in detector.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 20
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert sum("fpn" in name for name, m in detector.named_modules() if m in set(norms)) == 5


def test_batch_norm_constants_reach_every_norm():
    detector = small_detector(bn_momentum=0.003, bn_eps=1e-4)
    norms = [m for m in detector.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.003, 1e-4)}


@pytest.mark.parametrize("size", [(96, 96), (64, 160), (100, 70)])
def test_trains_and_detects_at_any_size(size):
    detector = small_detector()
    images = torch.randn(2, 3, *size)
    losses = detector(images, targets_for(images))
    assert set(losses) == {"rpn_score", "rpn_box", "class", "box", "mask"}
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    still = [name for name, p in detector.named_parameters() if p.grad is None]
    assert not still
    detector.eval().roi_heads.score_thresh = 0.0
    with torch.no_grad():
        for found in detector(images):
            assert found["masks"].shape == (len(found["boxes"]), 1, 28, 28)
            assert len(found["boxes"]) > 0
            assert (found["boxes"] >= 0).all()
            assert (found["boxes"][:, 2] <= size[1]).all()
            assert (found["boxes"][:, 3] <= size[0]).all()


def test_detections_stay_in_the_unpadded_region():
    detector = small_detector().eval()
    detector.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        (found,) = detector(torch.randn(1, 3, 96, 96), valid=[(40, 96)])
    assert len(found["boxes"]) > 0
    assert (found["boxes"][:, 3] <= 40).all()


def test_a_mostly_padded_canvas_pools_from_the_same_places():
    """torchvision takes the pyramid's strides from the unpadded sizes, which fails where they are small."""
    detector = small_detector()
    images = torch.randn(1, 3, 96, 96)
    # The proposals are the same; only the pooling could know of the sizes.
    proposals = [torch.tensor([[8.0, 8, 40, 48], [0, 0, 9, 9]])]
    detector.rpn.register_forward_hook(lambda module, inputs, output: (proposals, output[1]))
    whole, padded = (
        detector(images, targets_for(images), valid=valid, seeds=[0]) for valid in ([(96, 96)], [(9, 9)])
    )
    for name in ("class", "box", "mask"):
        torch.testing.assert_close(whole[name], padded[name])


def test_images_without_objects_train():
    detector = small_detector()
    images = torch.randn(2, 3, 96, 96)
    losses = detector(images, targets_for(images, count=0))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["box"].item() == losses["mask"].item() == losses["rpn_box"].item() == 0
    sum(losses.values()).backward()
    assert detector.roi_heads.mask_predictor.mask_fcn_logits.weight.grad is not None


def test_autocast_keeps_coordinates_in_float32():
    detector = small_detector()
    images = torch.randn(2, 3, 96, 96)
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector(images, targets_for(images))
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        detector.eval().roi_heads.score_thresh = 0.0
        (found, _) = detector(images)
    assert found["boxes"].dtype == found["masks"].dtype == torch.float32


def test_a_training_step_waits_for_a_gpu_no_more_often_than_it_must():
    detector = small_detector()
    images = torch.randn(3, 3, 96, 96)
    targets = targets_for(images)
    with Synchronisations() as counted:
        sum(detector(images, targets).values()).backward()
    assert counted.found == {
        "aten._local_scalar_dense": 1,  # the check of what was given
        "tolist": 2,  # how many anchors and RoIs can be sampled
        "aten.nonzero": 16,  # torchvision: two an image before the suppression, one a level in each pooling
        "torchvision.nms": 3,
        "copy from the host": 7,  # torchvision: four in its box coders, one an image in the suppression
    }


def test_boxes_only():
    torch.manual_seed(0)
    detector = faster_rcnn("botnet_tiny", 3, **SMALL)
    assert not detector.has_masks
    images = torch.randn(1, 3, 96, 96)
    targets = [{key: t[key] for key in ("boxes", "labels")} for t in targets_for(images)]
    assert set(detector(images, targets)) == {"rpn_score", "rpn_box", "class", "box"}
    (found,) = detector.eval()(images)
    assert set(found) == {"boxes", "scores", "labels"}


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto"])
def test_any_timm_backbone(name):
    detector = mask_rcnn(name, 2, **SMALL, **MASKS)
    images = torch.randn(1, 3, 64, 96)
    assert torch.isfinite(sum(detector(images, targets_for(images)).values()))


def test_mask_logits_are_those_of_the_own_class():
    """Equal to torchvision's predictor for all classes, indexed by the class of each box."""
    detector = small_detector().eval()
    heads = detector.roi_heads
    nn.init.normal_(heads.mask_predictor.mask_fcn_logits.bias)
    features = detector.fpn(detector.backbone(torch.randn(2, 3, 96, 96)))
    boxes = [torch.tensor([[8.0, 8, 40, 48], [30, 20, 80, 70]]), torch.tensor([[3.0, 4, 60, 66]])]
    classes = [torch.tensor([1, 3]), torch.tensor([2])]
    found = heads.mask_logits(features, boxes, classes)
    whole = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, boxes, [])))
    torch.testing.assert_close(found, whole[torch.arange(3), torch.cat(classes)])


def test_seeds_fix_the_sampling():
    detector = small_detector(rpn_samples=6, roi_samples=4)
    images = torch.randn(2, 3, 96, 96)
    targets = targets_for(images)

    def total(seeds):
        return sum(detector(images, targets, seeds=seeds).values()).item()

    detector.eval()
    detector.training = detector.rpn.training = detector.roi_heads.training = True  # norms as they are
    torch.manual_seed(0)
    first = total([1, 2])
    torch.manual_seed(1)
    assert total([1, 2]) == first
    assert total([1, 3]) != first


def test_a_frozen_c2_does_not_learn():
    detector = small_detector(freeze_c2=True)
    images = torch.randn(2, 3, 96, 96)
    sum(detector(images, targets_for(images)).values()).backward()
    frozen = {
        name.split(".")[1]
        for name, p in detector.named_parameters()
        if name.startswith("backbone") and p.grad is None
    }
    learning = {
        name.split(".")[1]
        for name, p in detector.named_parameters()
        if name.startswith("backbone") and p.requires_grad
    }
    assert "layer1" in frozen
    assert frozen.isdisjoint(learning)
    assert learning == {"layer2", "layer3", "layer4"}
    assert detector.spec["freeze_c2"]


def test_spec_rebuilds_the_detector():
    detector = small_detector()
    again = RCNN(**detector.spec)
    again.load_state_dict(detector.state_dict())
    assert again.spec == detector.spec
    images = torch.randn(1, 3, 96, 96)
    first, second = detector.eval()(images)[0], again.eval()(images)[0]
    torch.testing.assert_close(first["boxes"], second["boxes"])


def test_a_module_as_backbone_has_no_spec():
    backbone = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4))
    assert faster_rcnn(backbone, 2, **SMALL).spec is None


@pytest.mark.parametrize("name", ["botnet26t_256", "convnext_atto", "resnet18d"])
def test_networks_of_timm_are_backbones(name):
    """Attention of its own, whose tables have the size of the canvas; ConvNeXt; ResNet-D."""
    detector = small_detector(backbone=name, canvas=128, freeze_c2=True)
    images = torch.randn(2, 3, 128, 128)
    sum(detector(images, targets_for(images)).values()).backward()
    trained = [p for p in detector.backbone.parameters() if p.requires_grad]
    assert 0 < len(trained) < len(list(detector.backbone.parameters()))
    assert all(p.grad is not None for p in trained)
    again = RCNN(**json.loads(json.dumps(detector.spec)))
    again.load_state_dict(detector.state_dict())
    first, second = detector.eval()(images)[0], again.eval()(images)[0]
    assert len(first["boxes"])
    torch.testing.assert_close(first["boxes"], second["boxes"])


WITH_WINDOWS = (
    "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_ns_224",
    "maxvit_rmlp_pico_rw_256",
    "coatnet_nano_rw_224",
)


@pytest.mark.parametrize("name", WITH_WINDOWS)
@pytest.mark.parametrize("canvas", [96, 160])
def test_networks_of_a_fixed_image_size_are_built_for_the_canvas(name, canvas):
    """Their maps are channels last, or their windows and tables have the size of the image."""
    detector = small_detector(backbone=name, canvas=canvas)
    images = torch.randn(2, 3, canvas, canvas)
    levels = detector.pyramid(images)
    sides = [canvas // 4, canvas // 8, canvas // 16, canvas // 32, math.ceil(canvas / 64)]
    assert [tuple(level.shape) for level in levels.values()] == [(2, 16, side, side) for side in sides]
    sum(detector(images, targets_for(images)).values()).backward()
    learning = [name for name, p in detector.backbone.named_parameters() if p.grad is not None]
    assert len(learning) > 0.9 * len(list(detector.backbone.parameters()))
    assert detector.eval()(images)[0]["boxes"].isfinite().all()


def test_maps_with_channels_last_are_the_same_function():
    """The pyramid of Swin's own extractor, whose maps timm brings to channels first."""
    detector = small_detector(backbone="swin_tiny_patch4_window7_224", canvas=64).eval()
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224", features_only=True, feature_cls="getter", img_size=64, out_indices=4
    ).eval()
    state = {
        f"model.{k.replace('_', '.', 1)}" if k[:7] == "layers_" else f"model.{k}": v
        for k, v in detector.backbone.state_dict().items()
    }
    theirs.load_state_dict(state)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = detector.fpn(theirs(images))
        for name, level in detector.pyramid(images).items():
            torch.testing.assert_close(level, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "canvas", "message"),
    [
        ("vit_tiny_patch16_224", 224, r"gives maps of strides \[16, 16, 16, 16\]; .*such as resnet50"),
        ("levit_128s", 224, r"cannot be made to give four maps .*out of range.*such as resnet50"),
        ("efficientformer_l1", 320, r"does not take a canvas of 320 pixels .*; it takes one of 224"),
        ("halonet26t", 320, r"does not take a canvas of 320 pixels \(AssertionError\); it takes one of 256"),
    ],
)
def test_a_network_that_cannot_be_a_backbone_is_refused_by_name(name, canvas, message):
    with pytest.raises(ConfigError, match=f"^backbone: {name} {message}"):
        small_detector(backbone=name, canvas=canvas)


def test_a_network_of_one_canvas_works_at_it():
    assert small_detector(backbone="efficientformer_l1", canvas=224).backbone.training


def test_a_batch_of_one_cell_is_refused_in_training():
    detector, image = small_detector(canvas=64), torch.randn(1, 3, 64, 64)
    targets = targets_for(image, count=1)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    with pytest.raises(
        ConfigError, match=r"1 image .*64 x 64 pixels .*p6, of stride 64, .*more than 64 pixels"
    ):
        detector(image, targets)
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    for images in (torch.randn(2, 3, 64, 64), torch.randn(1, 3, 64, 65), torch.randn(1, 3, 65, 64)):
        losses = detector(images, targets_for(images, count=1))
        assert torch.isfinite(sum(losses.values()))
    detector.fpn.eval()  # statistics that are frozen need no batch
    assert torch.isfinite(sum(detector(image, targets).values()))
    assert len(detector.eval()(image)) == 1


def test_imagenet_weights_reach_all_but_the_attention(tmp_path):
    from safetensors.torch import save_file

    resnet = timm.create_model("resnet50")
    file = tmp_path / "resnet50.safetensors"
    save_file(resnet.state_dict(), file)
    detector = mask_rcnn("botnet50", 3, weights=str(file), **{**SMALL, **MASKS})
    state = resnet.state_dict()
    attention = {
        name for name in detector.backbone.state_dict() if ".conv2.qkv" in name or "pos_embed" in name
    }
    assert len(attention) == 9
    for name, value in detector.backbone.state_dict().items():
        if name not in attention:
            assert torch.equal(value, state[name]), name
    assert "weights" not in detector.spec


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_classes: 0 is not allowed"):
        mask_rcnn("botnet_tiny", 0)
    shallow = timm.create_model("resnet18", features_only=True, out_indices=(2, 3, 4))
    with pytest.raises(ValueError, match=r"FeatureListNet gives maps of strides \[8, 16, 32\]; .*four maps"):
        mask_rcnn(shallow, 2)
    with pytest.raises(ValueError, match="freeze_c2: the backbone has no part"):
        small_detector(freeze_c2=True, backbone="mobilenetv3_small_050")
    detector = small_detector()
    with pytest.raises(ValueError, match="needs targets"):
        detector(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"one batch \(B, 3, H, W\)"):
        detector([torch.randn(3, 64, 64)])
