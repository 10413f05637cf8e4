"""Numbers and words that no run can have are refused when the options are parsed, and by the constructors."""

import inspect
import math
from pkgutil import resolve_name
from typing import Union, get_args

import numpy as np
import pytest
from lightning.pytorch import Trainer

from botnet.arguments import COUNT, PART, check
from botnet.classification import ClassificationModule, ImageDataModule, create_classifier
from botnet.cli import main
from botnet.detection import RCNN, CocoDataModule, DetectionModule
from botnet.detection.transforms import EvalTransform, TrainTransform
from botnet.errors import ConfigError
from botnet.training.command import TrainingCLI
from botnet.training.options import check_options
from botnet.training.task import TaskModule

HUGE = 10**12
# What is meaningful of -1, 0, NaN, infinity, 1e30 and 10**12.
MEANINGFUL = {
    "seed_everything": (0,),
    "save_minutes": (0,),
    "global_batch": (),
    "patience": (),
    "trainer.num_nodes": (),
    "trainer.fast_dev_run": (0,),
    "trainer.max_epochs": (-1, 0),
    "trainer.min_epochs": (0,),
    "trainer.max_steps": (-1, 0),
    "trainer.min_steps": (0,),
    "trainer.devices": (-1,),
    "trainer.limit_train_batches": (),
    "trainer.limit_val_batches": (0,),
    "trainer.limit_test_batches": (0,),
    "trainer.limit_predict_batches": (0,),
    "trainer.overfit_batches": (0,),
    "trainer.val_check_interval": (),
    "trainer.check_val_every_n_epoch": (),
    "trainer.num_sanity_val_steps": (-1, 0),
    "trainer.log_every_n_steps": (0,),
    "trainer.accumulate_grad_batches": (),
    "trainer.gradient_clip_val": (0,),
    "trainer.reload_dataloaders_every_n_epochs": (0,),
    "data.canvas": (),
    "data.jitter": (),
    "data.flip": (0,),
    "data.copy_paste": (0,),
    "data.rotation": (0,),
    "data.batch_size": (),
    "data.val_batch_size": (),
    "data.num_workers": (0,),
    "data.skip_broken": (0,),
    "data.image_size": (),
    "data.crop_pct": (),
    "data.scale": (),
    "data.ratio": (),
    "data.color_jitter": (0,),
    "data.random_erasing": (0,),
    "data.mean": (0,),
    "data.std": (),
    "model.learning_rate": (0,),  # the weights stay
    "model.momentum": (0,),
    "model.weight_decay": (0,),
    "model.warmup_steps": (0,),
    "model.warmup_learning_rate": (0,),
    "model.warmup_epochs": (0,),
    "model.decay_at": (0,),
    "model.pictures": (0,),
    "model.label_smoothing": (0,),
    "model.mixup": (0,),
    "model.cutmix": (0,),
    "model.drop_rate": (0,),
    "model.drop_path_rate": (0,),
    "model.ema_decay": (0,),
    "model.detector.fpn_channels": (),
    "model.detector.anchor_scale": (),
    "model.detector.rpn_std": (),
    "model.detector.rpn_samples": (),
    "model.detector.rpn_pre_nms": (),
    "model.detector.rpn_post_nms": (),
    "model.detector.rpn_pre_nms_eval": (),
    "model.detector.rpn_post_nms_eval": (),
    "model.detector.roi_samples": (),
    "model.detector.roi_canonical_size": (),
    "model.detector.box_channels": (),
    "model.detector.mask_channels": (),
    "model.detector.mask_convs": (0,),
    "model.detector.score_threshold": (0,),
    "model.detector.nms_threshold": (0,),
    "model.detector.max_detections": (),
    "model.detector.bn_momentum": (),
    "model.detector.bn_eps": (),
}
LINKED = {"model.detector.num_classes", "model.detector.canvas", "model.num_classes", "model.image_size"}


class Parsed(TrainingCLI):
    """Parses the options, and makes nothing."""

    def before_instantiate_classes(self):
        pass

    def instantiate_classes(self):
        pass

    def _run_subcommand(self, subcommand):
        pass


@pytest.fixture(scope="module")
def parsed():
    return [
        Parsed(["fit", "--config", f"recipes/{name}.yaml"]) for name in ("quickstart", "quickstart_classify")
    ]


def is_number(hint):
    return hint in (int, float) or any(is_number(part) for part in get_args(hint))


def key_of(config, option):
    """The option with ``init_args``, if the recipe's classes have it."""
    words = option.split(".")
    for key in (option, ".init_args.".join(words)):
        if key in config:
            return key
    return None


def test_every_numeric_option_is_in_the_list(parsed):
    found = set()
    for cli in parsed:
        for action in cli._subcommand_parsers["fit"]._actions:
            if is_number(getattr(action, "_typehint", None)) and not action.dest.startswith(
                ("data", "model")
            ):
                found.add(action.dest)
        classes = [(option, cli.config.fit[option]) for option in ("data", "model")]
        for option, config in classes:
            for name, parameter in inspect.signature(resolve_name(config.class_path)).parameters.items():
                if hasattr(inner := config.init_args.get(name), "class_path"):
                    classes.append((f"{option}.{name}", inner))
                elif is_number(parameter.annotation):
                    found.add(f"{option}.{name}")
    assert found - LINKED - {"trainer.max_time"} == set(MEANINGFUL)


@pytest.mark.parametrize("option", MEANINGFUL)
def test_only_meaningful_numbers_are_allowed(option, parsed):
    configs = [cli.config.fit.clone() for cli in parsed]
    config, key = next((config, key) for config in configs if (key := key_of(config, option)))
    usual = config[key]
    check_options(config)
    for value in (-1, 0, math.nan, math.inf, 1e30, HUGE):
        config[key] = [value] * len(usual) if isinstance(usual, list | tuple) else value
        if value in MEANINGFUL[option]:
            check_options(config)
            continue
        with pytest.raises(ConfigError, match=rf"^--{option}: \S+ is not allowed; give "):
            check_options(config)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--model.learning_rate", "-1"], "-1 is not allowed; give a number from 0 to 1000"),
        (["--data.num_workers", "-1"], "-1 is not allowed; give an integer from 0 to 1024"),
        (["--model.detector.roi_samples", "0"], "0 is not allowed; give an integer from 4 to 2147483647"),
        (["--data.canvas", "3000000"], "3000000 is not allowed; give an integer from 1 to 65536"),
        (["--data.canvas", "1e30"], "'1e+30' is not allowed; give an integer"),
        (["--data.canvas", "nan"], "'nan' is not allowed; give an integer"),
        (["--model.momentum", ".nan"], "nan is not allowed; give a number from 0 to below 1"),
        (["--data.jitter", "[2, 0.1]"], "[2.0, 0.1] is not allowed; give the smaller number first"),
        (["--seed_everything", "-1"], "-1 is not allowed; give an integer from 0 to 4294967295"),
        (
            ["--trainer.devices", "0"],
            "'0' is not allowed; give -1 or an integer from 1 to 1024 or auto or a list",
        ),
        (["--trainer.max_time", "-1"], "'-1' is not allowed; give DD:HH:MM:SS"),
        (["--trainer.overfit_batches", "3"], "3 is not allowed; give 0"),
        (["--trainer.default_root_dir", __file__], f"{__file__} is no folder, as {__file__} is a file"),
        (["--trainer.default_root_dir", f"{__file__}/run"], f"{__file__}/run is no folder, as {__file__} is"),
    ],
)
def test_the_command_refuses_a_number_in_one_line(given, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", "recipes/quickstart.yaml", *given]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"botnet: {given[0]}: {expected}")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("recipe", "option", "value", "hint"),
    [
        ("quickstart", "trainer.precision", "bf16-mixd", "bf16-mixed, 16-mixed, bf16"),
        ("quickstart", "trainer.accelerator", "gpuu", "gpu, tpu, cpu"),
        ("quickstart", "trainer.strategy", "dpd", "ddp"),
        ("quickstart", "trainer.devices", "autoo", "auto"),
        ("quickstart", "trainer.profiler", "simpel", "simple"),
        ("quickstart", "trainer.gradient_clip_algorithm", "nrm", "norm"),
        ("quickstart", "trainer.deterministic", "wran", "warn"),
        ("quickstart", "batch_rule", "linar", "linear"),
        ("quickstart", "model.detector.backbone", "bot5O", "botnet50, botnet_t5, botnet152"),
        ("quickstart_classify", "model.model", "botnet5O", "botnet50, botnet_t5, botnet152"),
        ("quickstart_classify", "data.reader", "foldr", "folder"),
        ("quickstart_classify", "data.interpolation", "bicubc", "bicubic"),
    ],
)
def test_a_misspelt_choice_is_answered_with_the_nearest(
    recipe, option, value, hint, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # without the recipes' data, which would be missed if they were read first
    assert main(["fit", "--config", f"recipes/{recipe}.yaml", f"--{option}", value]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"botnet: --{option}: {value!r} is not allowed; give ")
    assert said.endswith(f"; did you mean {hint}?\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (lambda: RCNN("botnet_tiny", 0), "num_classes", "0"),
        (lambda: RCNN("bot5O", 3), "backbone", "'bot5O'"),
        (lambda: create_classifier("bot5O", 3, 64), "name", "'bot5O'"),
        (lambda: RCNN("botnet_tiny", 3, canvas=-1), "canvas", "-1"),
        (lambda: RCNN("botnet_tiny", 3, canvas=64.0), "canvas", "64"),
        (lambda: RCNN("botnet_tiny", 3, roi_samples=0), "roi_samples", "0"),
        (lambda: DetectionModule(None, learning_rate=-1), "learning_rate", "-1"),
        (lambda: DetectionModule(None, decay_at=(0.5, math.nan)), "decay_at", "nan"),
        (lambda: ClassificationModule("botnet_s1_tiny", 3, 0), "image_size", "0"),
        (lambda: TaskModule(0.1, 1.0, 0, None), "momentum", "1"),
        (lambda: CocoDataModule("a", "b", "c", "d", num_workers=-1), "num_workers", "-1"),
        (lambda: ImageDataModule("a", "b", std=(1, 1, 0)), "std", "0"),
        (lambda: EvalTransform(0), "canvas", "0"),
        (lambda: TrainTransform(64, flip=1.5), "flip", "1.5"),
    ],
)
def test_so_do_the_constructors(make, name, value):
    with pytest.raises(ConfigError, match=f"^{name}: {value} is not allowed; give an? "):
        make()


@pytest.mark.parametrize("value", [np.int64(-5), np.float32(3), np.float32(math.nan)])
def test_numbers_of_numpy_have_the_same_limits(value):
    with pytest.raises(ConfigError, match=r"^epochs: .* is not allowed; give an integer from "):
        check("epochs", value, COUNT)
    check("epochs", np.int64(5), COUNT)
    check("epochs", np.float32(0.5), PART)
    assert EvalTransform(np.int64(64)).size == (64, 64)


def test_numbers_of_numpy_become_those_of_python():
    scale = [np.float64(0.5), np.float32(1)]
    spec = RCNN("resnet18", np.int64(3), canvas=np.int32(64), nms_threshold=np.float64(0.5)).spec
    assert {type(spec[name]) for name in ("num_classes", "canvas")} == {int}
    assert type(TrainTransform(64, jitter=scale).jitter[0]) is float


def test_help_shows_limits_in_words(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--data.help", "botnet.detection.CocoDataModule"])
    assert "an integer from 1 to 65536" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("make", "given", "length"),
    [
        (lambda: TrainTransform(64, jitter=(0.5,)), r"jitter: \(0.5,\)", 2),
        (lambda: TrainTransform(64, jitter=(0.1, 1, 2)), r"jitter: \(0.1, 1, 2\)", 2),
        (lambda: EvalTransform((64,)), r"canvas: \(64,\)", 2),
        (lambda: ImageDataModule("a", "b", std=[0.2, 0.2]), r"std: \[0.2, 0.2\]", 3),
    ],
)
def test_as_many_numbers_as_the_argument_has(make, given, length):
    with pytest.raises(ConfigError, match=f"^{given} is not allowed; give {length} numbers$"):
        make()


@pytest.mark.parametrize("kinds", [Union[float, int, None], Union[int, float, None]])  # noqa: UP007
def test_an_integer_stays_one_whatever_was_imported_before(kinds, monkeypatch):
    # torchmetrics, for one, makes Optional[Union[float, int]], which typing then also returns to Lightning.
    monkeypatch.setitem(Trainer.__init__.__annotations__, "limit_train_batches", kinds)
    for given, expected in (("1", 1), ("1.0", 1.0), ("0.5", 0.5)):
        cli = Parsed(["fit", "--config", "recipes/quickstart.yaml", "--trainer.limit_train_batches", given])
        found = cli.config.fit.trainer.limit_train_batches
        assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    "wrong", [{"nonsense": 1}, {"position": "relativ"}, {"output_stride": 7}, {"pretrained": True}]
)
def test_arguments_that_a_network_does_not_take_are_named(wrong):
    with pytest.raises(ConfigError, match=f"^botnet_s1_tiny cannot be made with .*{next(iter(wrong))}"):
        ClassificationModule("botnet_s1_tiny", 3, 64, model_kwargs=wrong)


@pytest.mark.parametrize(
    "option",
    [
        {"name": "resnet18"},
        {"num_classes": 3},
        {"image_size": 64},
        {"img_size": 128},
        {"in_chans": 1},
        {"features_only": True},
    ],
)
def test_arguments_that_follow_from_the_data_are_refused(option):
    """They would be ignored, or fail in the first step."""
    with pytest.raises(ConfigError, match=f"^model_kwargs: {next(iter(option))} is not allowed"):
        ClassificationModule("botnet_tiny", 3, 64, model_kwargs=option)


def test_an_unknown_tag_of_a_network_is_refused():
    with pytest.raises(
        ConfigError, match=r"^model: 'resnet18\.foo' is not allowed; .* did you mean resnet18"
    ):
        ClassificationModule("resnet18.foo", 3, 64)
    with pytest.raises(ConfigError, match=r"^backbone: 'resnet18\.foo' is not allowed"):
        RCNN("resnet18.foo", 3)


@pytest.mark.parametrize("name", ["local-dir:nowhere", "x:y"])
def test_a_network_that_timm_cannot_make_is_named(name):
    with pytest.raises(ConfigError, match=f"^{name} cannot be made: "):
        ClassificationModule(name, 3, 64)
