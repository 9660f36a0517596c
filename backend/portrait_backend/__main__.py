"""`python3 -m portrait_backend` is `portrait-diffusion`."""

import sys

from portrait_backend.cli import main

sys.exit(main())
