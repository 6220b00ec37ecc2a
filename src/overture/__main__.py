"""``python -m overture``: the command line, also for launchers such as torchrun."""

import sys

from overture.cli import main

if __name__ == "__main__":  # data workers that are spawned import this file
    sys.exit(main())
