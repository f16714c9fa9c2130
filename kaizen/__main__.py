"""`python -m kaizen COMMAND`, or `kaizen COMMAND` where the package is installed."""

import sys

from kaizen.commands import COMMANDS, run


def main() -> int:
    """Run the command that the command line names; returns the exit code."""
    return run(sys.argv[1:], COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
