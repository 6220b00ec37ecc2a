"""``python -m overture``: the command line, also for launchers such as torchrun."""

import sys

from overture.cli import main

sys.exit(main())
