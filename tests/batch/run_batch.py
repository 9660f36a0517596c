"""Run the command line in a process of its own, its batch with the light engine, or with that of ENGINE in the environment."""

import os
import signal
import sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background has it ignored
sys.path.insert(0, str(Path(__file__).parents[2]))

if __name__ == "__main__":
    from portrait_backend.batch import run
    from portrait_backend.cli import main
    from tests.batch.fake_engine import LIGHT

    run.ENGINE = os.environ.get("ENGINE", LIGHT)
    sys.exit(main())
