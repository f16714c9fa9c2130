"""train.py and `python -m kaizen.commands.train`: parse, build, run."""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from kaizen.cli.resolve import default_directory, left_out, parse_arguments, resolve
from kaizen.errors import ConfigError, KaizenError, Stopped, TrainingFailed
from kaizen.run.stop import StopRequest, end_with_launcher

USAGE = "python train.py [RECIPE] [--preset NAME] [--section.key VALUE ...]     (the same as kaizen train ...)"


def main(tokens: Sequence[str]) -> int:
    """Train as the command line says; returns the exit code (see CONTRACT: 0, 2, 3, 75)."""
    if {"-h", "--help"} & set(tokens):
        from kaizen.cli.help import help_text

        print(help_text(USAGE, "Train Kaizen, or go on where the run directory left off."))
        return 0
    # Read when torch is loaded: threads that wait spin for less long, which costs nothing where the cores are free and
    # saves most of the time where another program wants them.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    end_with_launcher()
    stop = StopRequest()
    try:
        stop.install()
        arguments = parse_arguments(tokens)
        preset, (recipe, config) = arguments.preset, resolve(*arguments)
        path = Path(config.run.dir or default_directory(recipe, preset, config.run.seed)).expanduser()
        stop.watch(path)
        from kaizen.training.trainer import (
            Trainer,  # torch, accelerate and datasets load only for a configuration that holds
        )

        Trainer(recipe, config, path, stop, preset, left_out(*arguments)).run()
    except (Stopped, KeyboardInterrupt) as stopped:
        _say(f"stopped by {str(stopped) or 'SIGINT'}: the same command goes on from here")
        return Stopped.exit_code
    except ConfigError as error:
        _say(f"error: {error}", error.everywhere)
        return error.exit_code
    except KaizenError as error:
        _say(f"error: training failed: {error}", error.everywhere)
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return TrainingFailed.exit_code
    return 0


def _say(text: str, everywhere: bool = False) -> None:
    """One line on stderr, from one process of the run or from this one; what a launcher says comes below it."""
    if everywhere or os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
