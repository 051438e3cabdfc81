"""`python -m rvcd` is `rvcd`."""

import sys

from rvcd.cli import main

sys.exit(main())
