"""The program: ``transfer-learning COMMAND ...``, also ``python -m transfer_learning COMMAND ...``."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from transfer_learning import __version__
from transfer_learning.cli.parser import PROGRAM, run_main
from transfer_learning.errors import ExitCode, UserError, did_you_mean

COMMANDS = {  # each a module of this name beside this one, imported only when it is called
    "run": "train and evaluate a classifier",
    "launch": "train with several worker processes",
    "prepare": "check a dataset before training: duplicates, label issues, outliers",
    "evaluate": "evaluate finished runs: again, on other images, together, or compared",
    "predict": "predict images with a finished run",
    "export": "write a finished run as SavedModel, ONNX, LiteRT, OpenVINO or Keras",
    "serve": "start an HTTP server with a web page for a finished run",
    "compare": "train several variants on the same images and compare them",
    "report": "write the report of a run again, or a leaderboard of several runs",
    "list": "list the known datasets, backbones and recipes",
    "cache": "list or clear the cache of decoded images and features",
    "benchmark": "measure the CPU and the GPUs of this machine, or plan a run on many",
}

HELP = f"""usage: {PROGRAM} COMMAND [options]

Transfer learning for image classification.

commands:
{"".join(f"  {name:10} {text}" + chr(10) for name, text in COMMANDS.items())}
options:
  --help     show this message; `{PROGRAM} COMMAND --help` shows the options of a command
  --version  show the version

Completion in bash and zsh: eval "$(register-python-argcomplete {PROGRAM})\""""


def main() -> ExitCode:
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions of the line that is being typed
        return _complete()
    return run_main(call, sys.argv[1:])


def call(arguments: Sequence[str] | None) -> ExitCode | None:
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help", "help"):
        print(HELP)
        return None
    if command == "--version":
        print(f"{PROGRAM} {__version__}")
        return None
    if command not in COMMANDS:
        raise UserError(f"There is no command {command}.{did_you_mean(command, COMMANDS)}")
    return importlib.import_module(f"{__package__}.{command}").main(rest)


def _complete() -> ExitCode:
    """Completes the name of the command, or leaves the rest of the line to its parser (`Parser.parse_args`)."""
    import argcomplete

    words = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])].split(" ")
    if len(words) > 2 and words[1] in COMMANDS:
        os.environ["_ARGCOMPLETE"] = "2"  # the words of the command begin at the second
        return run_main(call, words[1:2])
    parser = argparse.ArgumentParser(PROGRAM)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--version", action="store_true")
    argcomplete.autocomplete(parser)
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
