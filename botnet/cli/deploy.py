"""``botnet export``."""

import argparse
from pathlib import Path


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    export = commands.add_parser("export", description="write a trained network as an ONNX file")
    export.add_argument(
        "run_or_checkpoint", type=Path, metavar="RUN", help="folder of a run, or a checkpoint"
    )
    export.add_argument("--format", choices=("onnx",), default="onnx", help="of the file (onnx)")
    export.add_argument("--output", type=Path, default=Path("model.onnx"), help="new file (model.onnx)")
    export.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="of the images in pixels (that of the run)"
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


def run_export(options: argparse.Namespace) -> int:
    """Run ``export``: write the file and name it."""
    from botnet.deploy.export import export_onnx

    output = export_onnx(
        options.run_or_checkpoint,
        options.output,
        size=tuple(options.size) if options.size else None,
        half=options.half,
        verify=options.verify,
        images=options.images,
    )
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")
    return 0
