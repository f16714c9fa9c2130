"""Train Kaizen, or go on where a run was left: `accelerate launch train.py [RECIPE] [--section.key VALUE ...]`."""

import signal
import sys

if __name__ == "__main__":
    # Until the run takes over there is nothing to save, so Ctrl-C ends the program without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from kaizen.commands.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
