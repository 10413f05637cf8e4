"""A detector's run from its recipe to its pictures, its resumption, and what it refuses."""

import csv
import json
from functools import partialmethod
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from PIL import Image
from torch import nn
from torch._dynamo import lookup_backend

from botnet.cli import main
from botnet.detection import CocoDataModule, DetectionModule, mask_rcnn
from botnet.detection.rcnn import checkpoint_activations
from botnet.errors import ConfigError
from botnet.layers import MHSA2d
from botnet.training.task import parameter_groups
from tests.support.recipes import DETECTOR, write_recipe
from tests.support.saved import saved_bytes

pytestmark = pytest.mark.long


def logged_steps(folder):
    steps = []
    for table in sorted(folder.glob("csv/version_*/metrics.csv")):
        with table.open(newline="") as file:
            steps += [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    return steps


def test_a_run_writes_its_files(run):
    _, folder = run
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    assert kept == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert (folder / "config.yaml").is_file()
    assert list((folder / "tensorboard").glob("events.*"))
    assert logged_steps(folder) == [0, 1]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["step"] == 2
    for kind in ("box", "mask"):
        assert len(metrics[kind]) == 12 + 1
        assert len(metrics[kind]["per_class"]) == 10
    assert isinstance(json.loads((folder / "results_segm.json").read_text()), list)
    pictures = sorted((folder / "pictures").iterdir())
    assert len(pictures) == 2
    with Image.open(pictures[0]) as picture:
        assert picture.width > 2 * 300  # truth and prediction side by side
    assert (folder / "curves.png").is_file()


def test_a_run_folder_is_not_used_twice(run, capsys):
    recipe, folder = run
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    assert main(["fit", "--config", str(recipe)]) == 2
    message = capsys.readouterr().err
    assert str(folder) in message
    assert "--ckpt_path last" in message
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == before


def test_a_run_resumes_where_it_stopped(run):
    recipe, folder = run
    more = ["--trainer.max_epochs", "2", "--ckpt_path", "last"]
    assert main(["fit", "--config", str(recipe), *more]) == 0
    assert logged_steps(folder) == [0, 1, 2, 3]  # nothing done twice, no log lost
    assert json.loads((folder / "metrics.json").read_text())["step"] == 4


def test_callbacks_of_the_recipe_are_kept(digits, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run")
    watch = ["--trainer.callbacks", "lightning.pytorch.callbacks.LearningRateMonitor"]
    assert main(["fit", "--config", str(recipe), *watch]) == 0
    header = (tmp_path / "run" / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert "lr-SGD" in header


def test_validation_logs_its_losses(run):
    _, folder = run
    rows = list(csv.DictReader((folder / "csv" / "version_0" / "metrics.csv").open()))
    names = ["rpn_score", "rpn_box", "class", "box", "mask"]
    (losses,) = [row for row in rows if row["val/loss"]][:1]
    parts = [float(losses[f"val/{name}"]) for name in names]
    assert all(part > 0 for part in parts)
    assert float(losses["val/loss"]) == pytest.approx(sum(parts), rel=1e-5)
    assert set(json.loads((folder / "metrics.json").read_text())) == {"epoch", "step", "box", "mask"}


def test_validate_gives_the_numbers_of_the_run(run):
    recipe, folder = run
    checkpoint = folder / "checkpoints" / "last.ckpt"
    assert main(["validate", "--config", str(recipe), "--ckpt_path", str(checkpoint)]) == 0
    of_run = json.loads((folder / "metrics.json").read_text())
    again = json.loads((folder / "validate" / "metrics.json").read_text())
    assert again["box"] == of_run["box"]
    assert again["mask"] == of_run["mask"]


def test_a_checkpoint_of_other_classes_is_refused(run, digits, tmp_path, capsys):
    _, folder = run
    for split in ("train", "val"):
        truth = json.loads((digits / f"instances_{split}.json").read_text())
        truth["categories"] = truth["categories"][:9]
        truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] < 10]
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(truth))
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        digits,
        tmp_path / "run",
        train_instances=str(tmp_path / "instances_train.json"),
        val_instances=str(tmp_path / "instances_val.json"),
    )
    checkpoint = folder / "checkpoints" / "last.ckpt"
    assert main(["fit", "--config", str(recipe), "--ckpt_path", str(checkpoint)]) == 2
    message = capsys.readouterr().err
    assert "has 10 classes" in message
    assert "the data have 9" in message


def test_train_and_val_must_have_the_same_categories(digits, tmp_path, capsys):
    truth = json.loads((digits / "instances_val.json").read_text())
    truth["categories"].reverse()
    for index, category in enumerate(truth["categories"]):
        category["id"] = index + 1
    other = tmp_path / "instances_val.json"
    other.write_text(json.dumps(truth))
    recipe = write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run", val_instances=str(other))
    assert main(["fit", "--config", str(recipe)]) == 2
    message = capsys.readouterr().err
    assert str(other) in message
    assert "same categories" in message


def test_a_detector_of_another_class_count_is_refused(digits):
    data = CocoDataModule(
        *(digits / name for name in ("instances_train.json", "train", "instances_val.json", "val")),
        canvas=64,
        num_workers=0,
    )

    def trainer():
        return L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)

    module = DetectionModule(mask_rcnn(num_classes=2, canvas=64, **DETECTOR))
    with pytest.raises(ConfigError, match=r"detector has 2 classes, the data have 10 \(zero, one"):
        trainer().fit(module, data)
    with pytest.raises(ConfigError, match="the classes come with the data"):
        trainer().fit(module, data.train_dataloader())


def test_a_number_of_classes_that_the_data_would_override_is_refused(digits, tmp_path, capsys):
    recipe = write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run")
    assert main(["fit", "--config", str(recipe), "--model.detector.num_classes", "80"]) == 2
    expected = (
        "--model.detector.num_classes: 80 would be ignored, since the data have 10 classes (zero, one, "
    )
    assert f"botnet: {expected}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    limits = ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "0"]
    assert main(["fit", "--config", str(recipe), "--model.detector.num_classes", "10", *limits]) == 0


def test_fewer_images_than_a_batch_are_refused(digits, tmp_path, capsys):
    recipe = write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run", batch_size=9)
    assert main(["fit", "--config", str(recipe)]) == 2
    assert "fewer than one batch of 9" in capsys.readouterr().err


def test_a_batch_of_one_cell_is_refused_in_a_line(digits, tmp_path, capsys):
    recipe = write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run", batch_size=1)
    assert main(["fit", "--config", str(recipe)]) == 2
    expected = (
        "a training batch of 1 image (data.batch_size) of 64 x 64 pixels (data.canvas): p6, of stride 64"
    )
    assert f"botnet: {expected}" in capsys.readouterr().err
    more = ["--data.canvas", "96", "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
    assert main(["fit", "--config", str(recipe), *more]) == 0


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_a_precision_that_boxes_do_not_have_is_refused(precision, digits, tmp_path, capsys):
    recipe = write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run")
    assert main(["fit", "--config", str(recipe), "--trainer.precision", precision]) == 2
    expected = f"{precision}: a detector's boxes are 32-bit numbers; give bf16-mixed, 16-mixed"
    assert f"botnet: trainer.precision {expected}" in capsys.readouterr().err


# 118,287 images in batches of 64 are 1,848 whole steps an epoch. By hand: the rate is 0.0067 first, rises by
# 0.0733 / 500 a step to 0.08 at step 500, and falls to a tenth at 2/3 and 8/9 of the steps.
@pytest.mark.parametrize(
    ("epochs", "total", "falls"),
    [
        (12, 22_176, (14_784, 19_712)),
        (24, 44_352, (29_568, 39_424)),
        (36, 66_528, (44_352, 59_136)),
        (72, 133_056, (88_704, 118_272)),
    ],
)
def test_learning_rate_at_chosen_steps(epochs, total, falls):
    module = DetectionModule(mask_rcnn(num_classes=2, canvas=64, **DETECTOR))
    assert 118_287 // 64 * epochs == total
    first, second = falls
    expected = {
        0: 0.0067,
        100: 0.02136,
        250: 0.04335,
        499: 0.0798534,
        500: 0.08,
        first - 1: 0.08,
        first: 0.008,
        second - 1: 0.008,
        second: 0.0008,
        total - 1: 0.0008,
    }
    assert {step: 0.08 * module.rate(step, total) for step in expected} == pytest.approx(expected)


def test_learning_rate_of_a_cosine():
    """Up to 0.01 in 100 steps of 1100, then half a cosine: at 1/3 of it cos(60 degrees), at 1/2 cos(90)."""
    module = DetectionModule(
        mask_rcnn(num_classes=2, canvas=64, **DETECTOR),
        learning_rate=0.01,
        warmup_steps=100,
        warmup_learning_rate=0.002,
        cosine=True,
    )
    expected = {0: 0.002, 50: 0.006, 100: 0.01, 100 + 1000 / 3: 0.0075, 600: 0.005, 1100: 0.0}
    assert {step: 0.01 * module.rate(step, 1100) for step in expected} == pytest.approx(expected)


# 12 epochs. A batch of 16 is a quarter of 64: a quarter of the rates, four times the warm-up; 7,392 steps an
# epoch. A batch of 128 is twice as large: 924 steps an epoch.
@pytest.mark.parametrize(
    ("batch", "total", "expected"),
    [
        (
            16,
            88_704,
            {0: 0.001675, 1000: 0.0108375, 2000: 0.02, 59_135: 0.02, 59_136: 0.002, 78_848: 0.0002},
        ),
        (128, 11_088, {0: 0.0134, 125: 0.0867, 250: 0.16, 7391: 0.16, 7392: 0.016, 9856: 0.0016}),
    ],
)
def test_learning_rate_of_other_batches(batch, total, expected):
    module = DetectionModule(mask_rcnn(num_classes=2, canvas=64, **DETECTOR))
    module.scale_batch(batch / 64)
    found = {step: module.learning_rate * module.rate(step, total) for step in expected}
    assert found == pytest.approx(expected)


class Rates(L.Callback):
    """The rate of every optimiser step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


def digits_data(digits) -> CocoDataModule:
    """8 training images, 2 at a time."""
    return CocoDataModule(
        *(digits / name for name in ("instances_train.json", "train", "instances_val.json", "val")),
        canvas=64,
        batch_size=2,
        num_workers=0,
    )


def rates_trainer(**options) -> L.Trainer:
    """Two passes a step, no validation."""
    return L.Trainer(
        accelerator="cpu",
        accumulate_grad_batches=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def test_learning_rate_in_the_loop_with_two_passes_a_step(digits):
    """8 images, 2 at a time, 2 passes a step: 2 steps an epoch, 6 in all; falls after a half and 5/6."""
    detector = mask_rcnn(num_classes=10, canvas=64, **DETECTOR)
    module = DetectionModule(
        detector, 0.01, warmup_steps=2, warmup_learning_rate=0.001, decay_at=(1 / 2, 5 / 6)
    )
    rates = Rates()
    rates_trainer(max_epochs=3, callbacks=[rates]).fit(module, digits_data(digits))
    assert rates.seen == pytest.approx([0.001, 0.0055, 0.01, 0.001, 0.001, 0.0001])


def test_a_resumed_run_follows_its_recipe(digits, tmp_path, log):
    """Its rates and its schedule, not the checkpoint's."""
    path, rates = tmp_path / "run.ckpt", Rates()
    detector = mask_rcnn(num_classes=10, canvas=64, **DETECTOR)
    trainer = rates_trainer(max_epochs=1)
    trainer.fit(DetectionModule(detector, 0.01, warmup_steps=2), digits_data(digits))
    trainer.save_checkpoint(path)
    module = DetectionModule(
        detector, 0.008, warmup_steps=4, warmup_learning_rate=0.004, decay_at=(5 / 6, 1.0)
    )
    trainer = rates_trainer(max_epochs=3, callbacks=[rates])
    trainer.fit(module, digits_data(digits), ckpt_path=path)
    assert rates.seen == pytest.approx([0.006, 0.007, 0.008, 0.0008])
    assert "learning_rate 0.008 (was 0.01)" in log.text
    assert "warmup_steps 4 (was 2)" in log.text


def test_the_loss_is_the_plain_sum(monkeypatch):
    module = DetectionModule(mask_rcnn(num_classes=2, canvas=64, **DETECTOR))
    losses = dict(zip(("rpn_score", "rpn_box", "class", "box", "mask"), torch.arange(1.0, 6), strict=True))
    monkeypatch.setattr(module.detector, "forward", lambda *_: losses)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    module._trainer = SimpleNamespace(current_epoch=0)
    assert module.training_step((torch.zeros(1, 3, 8, 8), [{"valid": (8, 8), "image_id": 7}]), 0) == 15


def test_what_several_devices_cannot_do_is_refused(digits):
    module = DetectionModule(mask_rcnn(num_classes=10, canvas=64, **DETECTOR))
    module._trainer = SimpleNamespace(datamodule=digits_data(digits), world_size=5, strategy=DDPStrategy())
    with pytest.raises(ConfigError, match="4 validation images are fewer than 5 devices"):
        module.setup("validate")
    module._trainer.strategy = FSDPStrategy()
    with pytest.raises(ConfigError, match=r"FSDPStrategy .*strategy ddp"):
        module.setup("fit")


def test_fine_tuning_from_the_command_line(run, digits, tmp_path, log):
    _, folder = run
    start = tmp_path / "start.ckpt"
    start.write_bytes((folder / "checkpoints" / "last.ckpt").read_bytes())
    recipe = write_recipe(tmp_path / "recipe.yaml", digits, tmp_path / "run")
    command = ["fit", "--config", str(recipe), "--model.init_args.init_from", str(start)]
    assert main(command) == 0
    assert "10 of 10 classes known" in log.text
    log.clear()
    start.unlink()  # a resumed run has its own weights
    assert main([*command, "--trainer.max_epochs", "2", "--ckpt_path", "last"]) == 0
    assert "started from" not in log.text


def test_validation_evaluates_the_weights_of_init_from(run, digits, tmp_path, log):
    checkpoint = run[1] / "checkpoints" / "last.ckpt"
    detector = mask_rcnn(num_classes=10, canvas=64, **DETECTOR)
    module = DetectionModule(detector, pictures=0, init_from=checkpoint)
    data = CocoDataModule(
        *(digits / name for name in ("instances_train.json", "train", "instances_val.json", "val")),
        canvas=64,
        num_workers=0,
    )
    trainer = L.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.validate(module, data, verbose=False)
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, value in detector.state_dict().items():
        assert torch.equal(value, stored[f"detector.{name}"]), name
    assert f"started from {checkpoint}" in log.text
    assert module.init_from is None  # a validation after a training must not read it again


def test_only_kernels_decay():
    detector = mask_rcnn(num_classes=2, canvas=64, **DETECTOR)
    decayed, spared = parameter_groups(detector, 1e-4)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-4, 0.0)
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    assert {id(p) for group in (decayed, spared) for p in group["params"]} == set(names)
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    attention = [name for name, m in detector.named_modules() if isinstance(m, MHSA2d)]
    kernels = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    expected = {
        f"{name}.weight"
        for name, module in detector.named_modules()
        if isinstance(module, kernels) and not name.startswith(tuple(attention))
    }
    assert len(attention) > 0
    assert {names[id(p)] for p in decayed["params"]} == expected


def losses_of_a_run(digits, **options) -> tuple[list[float], DetectionModule]:
    """The total losses of four batches, two passes a step."""
    L.seed_everything(0)
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            seen.append(float(trainer.callback_metrics["train/loss"]))

    module = DetectionModule(mask_rcnn(num_classes=10, canvas=64, **DETECTOR), 0.01, **options)
    rates_trainer(max_epochs=1, callbacks=[Watch()]).fit(module, digits_data(digits))
    return seen, module


def test_a_compiled_backbone_and_pyramid_give_the_same_losses(digits, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        # Later ones are counted only: to trace their gradients for any number of images takes a minute.
        return lookup_backend("aot_eager")(graph, inputs) if len(graphs) <= 2 else graph.forward

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    expected, eager = losses_of_a_run(digits)
    assert graphs == []
    found, compiled = losses_of_a_run(digits, compile=True)
    assert len(graphs) == 2
    assert found == pytest.approx(expected, rel=1e-4)
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    # Another number of images is compiled once, and any number after that not at all.
    compiled.eval()
    for images in (3, 4, 5):
        with torch.no_grad():
            compiled.detector.fpn(compiled.detector.backbone(torch.randn(images, 3, 64, 64)))
    before = len(graphs)
    for images in (6, 7):
        with torch.no_grad():
            compiled.detector.fpn(compiled.detector.backbone(torch.randn(images, 3, 64, 64)))
    assert len(graphs) == before


def test_activation_checkpointing_changes_nothing_but_the_memory(digits):
    expected, usual = losses_of_a_run(digits)
    found, module = losses_of_a_run(digits, activation_checkpointing=True)
    assert found == expected
    # Running statistics too, which the second computation must leave alone.
    assert module.state_dict().keys() == usual.state_dict().keys()
    for name, value in usual.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name
    images = torch.randn(2, 3, 64, 64)
    kept, before = (saved_bytes(m.detector.backbone.train(), images) for m in (module, usual))
    assert kept < 0.75 * before


def test_what_cannot_be_recomputed_is_named(digits):
    detector = mask_rcnn(num_classes=10, canvas=64, **DETECTOR)
    with pytest.raises(ConfigError, match="set one of the two"):
        DetectionModule(detector, compile=True, activation_checkpointing=True)
    stages = dict(detector.backbone.named_children())
    detector.backbone = nn.ModuleDict({f"other_{name}": stage for name, stage in stages.items()})
    detector.backbone.feature_info = mask_rcnn(num_classes=2, canvas=64, **DETECTOR).backbone.feature_info
    with pytest.raises(
        ConfigError, match="activation_checkpointing: the backbone has no part 'layer1' that c2"
    ):
        checkpoint_activations(detector.backbone)


@pytest.mark.parametrize(
    ("device", "scaler", "clip", "fused"),
    [
        ("cuda", None, None, True),
        ("cuda", "a scaler", None, None),
        ("cuda", None, 1.0, None),
        ("cpu", None, None, None),
    ],
)
def test_one_kernel_updates_the_weights_on_a_gpu(device, scaler, clip, fused):
    module = DetectionModule(mask_rcnn(num_classes=2, canvas=64, **DETECTOR))
    module._trainer = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=scaler),
        strategy=SimpleNamespace(root_device=torch.device(device)),
        estimated_stepping_batches=10,
        gradient_clip_val=clip,
    )
    chosen = module.configure_optimizers()
    optimizer, schedule = chosen["optimizer"], chosen["lr_scheduler"]["scheduler"]
    assert {group["fused"] for group in optimizer.param_groups} == {fused}
    # A checkpoint of a run elsewhere brings its own.
    for group in optimizer.param_groups:
        group["fused"] = not fused
    module._apply_recipe(optimizer, schedule)
    assert {group["fused"] for group in optimizer.param_groups} == {fused}


@pytest.mark.parametrize("fused", [True, None])
def test_torch_has_no_momentum_after_a_first_fused_step_that_is_skipped(fused):
    """Why fp16 is not fused: if this fails for True, torch has mended it."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills memory that nobody has written with NaN
    try:
        for gradient in (float("inf"), 4.0):
            weight.grad = torch.full((3,), gradient)
            scaler.scale(torch.ones(()))
            scaler.step(optimizer)
            scaler.update()
    finally:
        torch.use_deterministic_algorithms(deterministic)
    assert bool(weight.isfinite().all()) == (fused is None)
