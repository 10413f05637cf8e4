"""``botnet export`` and ``push``."""

import argparse
from pathlib import Path

from botnet.arguments import SIDE
from botnet.errors import ConfigError


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add both commands."""
    export = commands.add_parser("export", description="write a trained network as an ONNX file")
    export.add_argument("model", metavar="RUN", help="a run, a checkpoint, or hf-hub:user/name")
    export.add_argument("--format", choices=("onnx",), default="onnx", help="of the file (onnx)")
    export.add_argument("--output", type=Path, default=Path("model.onnx"), help="new file (model.onnx)")
    export.add_argument(
        "--size", type=SIDE, nargs=2, metavar=("H", "W"), help="of the images in pixels (that of the run)"
    )
    export.add_argument("--half", action="store_true", help="weights and activations in float16")
    export.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare with the eager network before the file gets its name",
    )
    export.add_argument("--images", type=Path, help="folder of pictures to compare on (the validation set)")
    export.set_defaults(run=run_export)

    push = commands.add_parser("push", description="publish a trained model on the Hugging Face hub")
    push.add_argument("model", metavar="RUN", help="a run, or a checkpoint")
    push.add_argument("name", nargs="?", metavar="USER/NAME", help="on the hub")
    push.add_argument(
        "--license", required=True, help="of the model, as the hub names it: apache-2.0, mit, ..."
    )
    push.add_argument("--private", action="store_true", help="if the repository is new")
    push.add_argument("--output", type=Path, help="write to this new folder, instead of the hub")
    push.set_defaults(run=run_push)


def run_export(options: argparse.Namespace) -> int:
    """Run ``export``: write the file and name it."""
    from botnet.deploy.export import export_onnx

    output = export_onnx(
        options.model,
        options.output,
        size=tuple(options.size) if options.size else None,
        half=options.half,
        verify=options.verify,
        images=options.images,
    )
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")
    return 0


def run_push(options: argparse.Namespace) -> int:
    """Run ``push``: publish a model on the hub, or write the same files to a folder."""
    from botnet.deploy.hub import push, save_published

    if (options.name is None) == (options.output is None):
        raise ConfigError("give either USER/NAME, or --output FOLDER")
    if options.output:
        save_published(options.model, options.output, options.license)
        print(f"{options.output}: written")
    else:
        print(push(options.model, options.name, options.license, private=options.private))
    return 0
