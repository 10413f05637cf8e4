"""docs/fidelity.md says what is: every value is the built detector's or the recipe's, every name exists."""

import ast
import importlib
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from botnet.detection import RCNN
from botnet.detection.datasets import MAX_OBJECTS
from botnet.detection.fpn import LEVELS
from botnet.layers import MHSA2d
from tests.support.detector import small_detector, targets_for

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "fidelity.md").read_text().split("## Decisions")[0].splitlines()
    if line.startswith("| ") and not line.startswith("| setting")
]
RECIPE = yaml.safe_load((ROOT / "botnet" / "recipes" / "coco" / "base.yaml").read_text())
MODEL, DATA, TRAINER = RECIPE["model"]["init_args"], RECIPE["data"]["init_args"], RECIPE["trainer"]


@pytest.fixture(scope="module")
def detector():
    arguments = {key: value for key, value in MODEL["detector"]["init_args"].items() if key != "weights"}
    with torch.device("meta"):
        return RCNN(**arguments, num_classes=80, canvas=DATA["canvas"])


def values(detector):
    """Each value of the table, said in its words, from where it is used."""
    rpn, heads = detector.rpn, detector.roi_heads
    norms = [m for m in detector.modules() if isinstance(m, nn.BatchNorm2d)]
    (momentum,), (eps,) = {norm.momentum for norm in norms}, {norm.eps for norm in norms}
    p6 = detector.fpn.pyramid.extra_blocks.conv
    (conv,) = (m for m in rpn.head.conv.modules() if isinstance(m, nn.Conv2d))
    in_training, in_evaluation = (
        (rpn._pre_nms_top_n[kind], rpn._post_nms_top_n[kind]) for kind in ("training", "testing")
    )
    masks = [m for m in heads.mask_head.modules() if isinstance(m, nn.Conv2d)]
    heads_norms = [m for part in (rpn, heads) for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
    ratios = {1.0: "1", 2.0: "2", 0.5: "1/2"}
    assert not heads_norms
    assert rpn.anchor_generator.strides == (4, 8, 16, 32, 64)
    assert [tuple(m.kernel_size) for m in masks] == [(3, 3)] * 4
    assert MODEL["decay_at"] == pytest.approx([2 / 3, 8 / 9])
    assert math.isclose(rpn.box_coder.bbox_xform_clip, math.log(1000 / 16))
    attention = [m for m in detector.backbone.modules() if isinstance(m, MHSA2d)]
    (qkv_std,) = {layer.qkv_std for layer in attention}
    return {
        "queries, keys and values start from": f"N(0, {qkv_std})",
        "stem and c2 frozen": not next(detector.backbone.parameters()).requires_grad,
        "batch norm momentum": momentum,
        "batch norm epsilon": eps,
        "batch norms over all devices": TRAINER["sync_batchnorm"],
        "precision": TRAINER["precision"],
        "pyramid": " ".join(LEVELS),
        "pyramid width": p6.out_channels,
        "norms of the pyramid": len(detector.fpn.norms),
        "p6": f"{p6.kernel_size[0]}x{p6.kernel_size[1]}, stride {p6.stride[0]}, on p5 before its norm",
        "anchor side": f"{rpn.anchor_generator.scale:g} x stride",
        "anchor ratios": ", ".join(ratios[ratio] for ratio in rpn.anchor_generator.ratios),
        "RPN head": f"one {conv.kernel_size[0]}x{conv.kernel_size[1]}, {conv.out_channels}, no norm",
        "RPN match": f"{rpn.proposal_matcher.high_threshold} / {rpn.proposal_matcher.low_threshold}, and an "
        "object's first best anchor",
        "RPN samples": f"{rpn.fg_bg_sampler.batch_size_per_image}, "
        f"{said(rpn.fg_bg_sampler.positive_fraction)} positive",
        "RPN suppression": f"{rpn.nms_thresh} in a level",
        "proposals in training": "{} a level, then {}".format(*in_training),
        "proposals in evaluation": "{} a level, then {}".format(*in_evaluation),
        "least side of a proposal": rpn.min_size,
        "box deltas clipped": "log(1000/16)",
        "RoI samples": f"{heads.fg_bg_sampler.batch_size_per_image}, a "
        f"{said(heads.fg_bg_sampler.positive_fraction)} positive",
        "RoI match": heads.proposal_matcher.high_threshold,
        "RoI pooling": f"{heads.box_roi_pool.output_size[0]} / {heads.mask_roi_pool.output_size[0]} bins, "
        f"one sample each, from {heads.box_roi_pool.featmap_names[0]} to "
        f"{heads.mask_roi_pool.featmap_names[-1]}",
        "side pooled from p4": heads.box_roi_pool.map_levels.s0,
        "box head": f"two FC {heads.box_head.fc6.out_features}, no norm",
        "box weights": ", ".join(f"{weight:g}" for weight in heads.box_coder.weights),
        "mask head": f"four 3x3 {masks[0].out_channels}, deconvolution to 28 x 28, no norm",
        "RoIs that masks learn from": "the positive ones, at most "
        f"{int(heads.fg_bg_sampler.batch_size_per_image * heads.fg_bg_sampler.positive_fraction)}",
        "objects an image": f"at most {MAX_OBJECTS}",
        "batch": RECIPE["global_batch"],
        "optimiser": f"SGD, momentum {MODEL['momentum']}",
        "weight decay": MODEL["weight_decay"],
        "gradient clipping": TRAINER.get("gradient_clip_val") or "none",
        "learning rate": MODEL["learning_rate"],
        "warm-up": f"{MODEL['warmup_steps']} steps from {MODEL['warmup_learning_rate']}",
        "canvas": DATA["canvas"],
        "scale jitter": "{} to {}".format(*DATA["jitter"]),
        "horizontal flip": DATA["flip"],
        "least score": heads.score_thresh,
        "suppression of detections": f"{heads.nms_thresh} in a class",
        "detections an image": heads.detections_per_img,
    }


def said(part):
    return {0.5: "half", 0.25: "quarter"}[part]


def test_the_tables_values_are_those_that_are_used(detector):
    table = {setting: value for setting, value, *_ in ROWS}
    found = values(detector)
    assert {setting: table[setting] for setting in found} == {
        name: str(value) for name, value in found.items()
    }
    by_value = {setting for setting, *_, proof in ROWS if proof == "value"}
    assert by_value <= set(found)
    assert len(ROWS) > 50


def test_what_the_table_names_exists():
    tests = {
        node.name
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    for setting, _, _, where, proof in ROWS:
        dotted = where.strip("`").split(".")
        # The longest part that is a module, and the attributes after it.
        for cut in range(len(dotted), 0, -1):
            try:
                thing = importlib.import_module(".".join(dotted[:cut]))
                break
            except ModuleNotFoundError:
                continue
        for attribute in dotted[cut:]:
            thing = getattr(thing, attribute)
        if proof != "value":
            assert proof.strip("`") in tests, setting
    text = (ROOT / "docs" / "fidelity.md").read_text()
    for name in re.findall(r"`(test_\w+)`", text):
        assert name in tests


def test_heads_start_as_in_the_papers_codebase():
    torch.manual_seed(0)
    detector = RCNN("resnet18", 20, canvas=64)
    heads = detector.roi_heads
    # Deviations of a uniform law: its bound by the root of three; Glorot's bound is sqrt(6 / (in + out)).
    expected = {
        detector.fpn.pyramid.inner_blocks[3][0]: (2 / (512 + 256)) ** 0.5,
        detector.fpn.pyramid.layer_blocks[0][0]: (2 / (2304 + 2304)) ** 0.5,
        detector.fpn.pyramid.extra_blocks.conv: (2 / (2304 + 2304)) ** 0.5,
        detector.rpn.head.conv[0][0]: 0.01,
        detector.rpn.head.cls_logits: 0.01,
        detector.rpn.head.bbox_pred: 0.01,
        heads.box_head.fc6: (2 / (12544 + 1024)) ** 0.5,
        heads.box_head.fc7: (2 / (1024 + 1024)) ** 0.5,
        heads.box_predictor.cls_score: 0.01,
        heads.box_predictor.bbox_pred: 0.001,
        heads.mask_head[0][0]: (2 / (9 * 256)) ** 0.5,
        heads.mask_predictor.conv5_mask: (2 / (4 * 256)) ** 0.5,
        heads.mask_predictor.mask_fcn_logits: (2 / 21) ** 0.5,
    }
    for layer, deviation in expected.items():
        assert float(layer.weight.std()) == pytest.approx(deviation, rel=0.08)
        assert not layer.bias.any()


def test_every_object_is_among_the_rois():
    detector = small_detector()
    images = torch.randn(1, 3, 96, 96)
    (target,) = targets_for(images)
    detector.roi_heads.fg_bg_sampler.generators = [None]
    # No proposal is near an object: the positive RoIs are the objects themselves.
    rois, _, labels, _ = detector.roi_heads.select_training_samples(
        [torch.tensor([[0.0, 0, 4, 4]])], [target]
    )
    assert sorted(rois[0][labels[0] > 0].tolist()) == sorted(target["boxes"].tolist())


def test_masks_learn_from_the_positive_rois():
    detector = small_detector()
    images = torch.randn(1, 3, 96, 96)
    seen = []
    detector.roi_heads.mask_head.register_forward_hook(
        lambda module, inputs, output: seen.append(len(output))
    )
    proposals = [torch.tensor([[8.0, 8, 40, 48], [9, 9, 41, 48], [60, 60, 90, 90]])]
    detector.rpn.register_forward_hook(lambda module, inputs, output: (proposals, output[1]))
    detector(images, targets_for(images))
    assert seen == [4]  # two of the proposals and both objects; sixteen RoIs at most, a quarter positive


def test_evaluation_is_at_the_training_canvas(digits):
    from botnet.detection import CocoDataModule

    data = CocoDataModule(
        *(digits / name for name in ("instances_train.json", "train", "instances_val.json", "val")),
        canvas=64,
        num_workers=0,
    )
    images, targets = next(iter(data.val_dataloader()))
    assert images.shape[-2:] == (64, 64)
    assert all(max(target["valid"]) == 64 for target in targets)
