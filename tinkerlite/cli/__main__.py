"""`python -m tinkerlite.cli`."""

import sys

from tinkerlite.cli import main

sys.exit(main())
