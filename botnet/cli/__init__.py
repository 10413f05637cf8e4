"""The command ``botnet``. Heavy imports wait until a command needs them."""

import argparse
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from botnet import __version__
from botnet.cli import data, deploy, paper, train, use
from botnet.demo import PACKAGES
from botnet.errors import BotnetError, ConfigError, nearest

# What to install where a module of an extra is missing: all packages of that extra.
ONNX = "onnx onnxruntime onnxscript"
OPTIONAL = dict.fromkeys(("mlxtend", "skimage", "sklearn"), PACKAGES) | dict.fromkeys(ONNX.split(), ONNX)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: its name and arguments; default those of the process.

    Returns:
        The exit status: 0 for success, 1 for problems found, 2 for a request that cannot be met, 130 and 143
        after an interrupt and SIGTERM. A bug shows its traceback.
    """
    _log_to_stderr()
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except BotnetError as error:
        print(f"botnet: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OPTIONAL:
            raise
        remedy = f"pip install {OPTIONAL[package]}"
        print(f"botnet: {package} is not installed, which this command needs: {remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("botnet: interrupted", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    """Find the command and run it."""
    if arguments[:1] in (["fit"], ["validate"]):
        return train.run_lightning(arguments)
    parser = _parser()
    overrides: list[str] = []
    if arguments[:1] == ["browse-data"]:  # argparse would take the values of options unknown to it as paths
        arguments, overrides = data.split_overrides(arguments)
    options, further = parser.parse_known_args(arguments)
    if further and options.run is not paper.run_reproduce:  # which passes them on to fit
        options.parser.error(f"unrecognized arguments: {' '.join(further)}")
    options.further = further + overrides
    return int(options.run(options))


class _Parser(argparse.ArgumentParser):
    """Answers a wrong option in one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command.

        Raises:
            ConfigError: always.
        """
        hint = ""
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            hint = nearest(choice[1], re.findall(r"[\w-]+", choice[2]))
        elif unknown := re.match(r"unrecognized arguments: (--[\w-]+)", message):
            hint = nearest(unknown[1], self._option_string_actions)
        raise ConfigError(f"{message.removeprefix('argument ')}{hint} ({self.prog} --help)")


def _parser() -> _Parser:
    parser = _Parser(
        prog="botnet",
        usage="botnet [-h] [--version] COMMAND ...",
        description="Bottleneck Transformers for Visual Recognition (Srinivas et al., CVPR 2021)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"botnet {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, prog="botnet", help=argparse.SUPPRESS)
    lines = []
    for module in (train, use, deploy, data, paper):
        before = set(commands.choices)
        module.add_commands(commands)
        lines.append(f"\n{module.__name__.rpartition('.')[2]}:")
        for name, command in commands.choices.items():
            if name not in before:
                command.set_defaults(parser=command)
                lines.append(f"    {name:<12} {command.description}")
    parser.epilog = "\n".join(lines)
    return parser


class _StderrHandler(logging.Handler):
    """Writes plain messages to the current ``sys.stderr``, which progress bars and tests replace."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        print(record.getMessage(), file=sys.stderr, flush=True)


def _log_to_stderr() -> None:
    """Show what the package logs, from level INFO on, and warnings in one line, without the code."""
    warnings.formatwarning = lambda message, *place: f"warning: {message}\n"
    logger = logging.getLogger("botnet")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
