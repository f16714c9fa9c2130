"""train.py and `python -m kaizen.commands.train`: parse, build, run."""

import os
import sys
import traceback
from collections.abc import Sequence

from kaizen.cli.resolve import default_directory, left_out, parse_arguments, resolve
from kaizen.cli.shipped import preset_of
from kaizen.commands.output import unfailing_output
from kaizen.errors import ConfigError, KaizenError, Stopped, TrainingFailed
from kaizen.run.places import user_path
from kaizen.run.stop import StopRequest, end_with_launcher

USAGE = "python train.py [RECIPE] [--preset NAME] [--trust-code] [--section.key VALUE ...]   (or: kaizen train ...)"


def main(tokens: Sequence[str]) -> int:
    """Train as the command line says; returns the exit code: 0, 2, 3 or 75."""
    with unfailing_output():
        if {"-h", "--help"} & set(tokens):
            from kaizen.cli.help import help_text

            print(help_text(USAGE, "Train Kaizen, or resume the run in its directory."))
            return 0
        return _train(tokens)


def _train(tokens: Sequence[str]) -> int:
    # torch reads it when it is loaded: waiting threads spin for a shorter time, which costs nothing if the cores are
    # free and saves most of the time if another program needs them.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    end_with_launcher()
    stop, path = StopRequest(), None
    try:
        stop.install()
        arguments = parse_arguments(tokens)
        recipe, config = resolve(*arguments)
        preset = arguments.preset or preset_of(arguments.recipe)
        path = user_path("run.dir", config.run.dir or default_directory(recipe, preset, config.run.seed))
        stop.watch(path)
        from kaizen.training.trainer import (
            Trainer,  # torch, accelerate and datasets are loaded only for a valid configuration
        )

        Trainer(recipe, config, path, stop, preset, left_out(*arguments)).run()
    except (Stopped, KeyboardInterrupt) as stopped:
        kept = f"the run is kept in {path}; " if path and path.is_dir() else ""
        _say(f"stopped by {str(stopped) or 'SIGINT'}: {kept}the same command resumes it")
        return Stopped.exit_code
    except ConfigError as error:
        _say(f"error: {error}", error.everywhere)
        return error.exit_code
    except KaizenError as error:
        _say(f"error: training failed: {error}; the files of the run are in {path}", error.everywhere)
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return TrainingFailed.exit_code
    return 0


def _say(text: str, everywhere: bool = False) -> None:
    """Print one line on stderr, from one process of the run or from every one; a launcher's output follows it."""
    one_process = os.environ.get("WORLD_SIZE", "1") in ("", "0", "1")
    if everywhere or one_process or os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
