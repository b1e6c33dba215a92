"""`python -m mbdefense`, which `accelerate launch -m mbdefense` needs."""

import sys

from mbdefense.cli import main

sys.exit(main())
