"""`python -m codiemb_lib`: the command `codiemb`."""

import sys

from codiemb_lib.app import main

sys.exit(main())
