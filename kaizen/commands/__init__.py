"""Commands of `python -m kaizen`, one file each: parse, build, run. A command is imported when it is called.

Only kaizen/__main__.py and train.py import them; they import everything.
"""

import signal
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

from kaizen.commands.output import unfailing_output
from kaizen.errors import KaizenError

COMMANDS = {
    "train": "train a recipe, or resume its run: the same as train.py",
    "recipes": "list the shipped recipes and presets",
    "eval": "evaluate every task's snapshot of a run again",
    "show": "print the resolved configuration of a recipe and the numbers derived from it",
    "predict": "class names and probabilities of images, with the model of a run or an exported one",
    "export": "write the model of a run to a folder, for kaizen, torchvision, timm and ONNX, or to the hub",
    "report": "compare runs: mean and spread over seeds of every reader and metric, as Markdown and CSV",
    "cache": "list or clear the cache of decoded images",
    "bench": "measure a training step: images/s, time by part, FLOPs, memory, comparison with a plain loop",
    "extend": "add tasks with new data to the end of a run, which training then continues",
    "sweep": "train every run of a sweep file: skip finished runs, resume the rest",
}


def run(tokens: Sequence[str], commands: Mapping[str, str]) -> int:
    """Run the command that the first token names; returns the exit code."""
    usage = "usage: kaizen COMMAND ...       (the same as python -m kaizen COMMAND ...)\n\n" + "\n".join(
        f"  {c:10} {about}" for c, about in commands.items()
    )
    with unfailing_output():
        if not tokens or tokens[0] in ("-h", "--help"):
            print(usage)
            return 0
        name, *rest = tokens
        if name not in commands:
            print(f"error: COMMAND: is {name!r}; allowed: {', '.join(commands)}", file=sys.stderr)
            return 2
        try:
            return import_module(f"kaizen.commands.{name}").main(rest)
        except KaizenError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        except SystemExit as ended:
            if ended.code:
                raise
            return 0  # argparse has printed the help
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
