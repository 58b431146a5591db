"""``python -m gain_trio``: the command ``gain-trio``."""

import sys

from gain_trio._command import main

sys.exit(main())
