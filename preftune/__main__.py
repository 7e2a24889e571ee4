"""`python -m preftune` is `preftune`."""

import sys

from preftune.cli.main import main

sys.exit(main())
