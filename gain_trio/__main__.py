"""``python -m gain_trio``: the command ``gain-trio``."""

import sys

from gain_trio._faces._cli import main

sys.exit(main())
