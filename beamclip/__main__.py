"""`python -m beamclip COMMAND`, for where the `beamclip` program is not on the path."""

import sys

from beamclip.commands.main import main

sys.exit(main())
