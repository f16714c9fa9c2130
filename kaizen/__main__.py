"""`python -m kaizen COMMAND`: everything but training."""

import sys

from kaizen.commands import COMMANDS, run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], COMMANDS))
