"""Train Kaizen, or go on where a run was left: `accelerate launch train.py [RECIPE] [--section.key VALUE ...]`."""

import sys

from kaizen.commands.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
