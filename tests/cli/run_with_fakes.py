"""Run the command line in a process of its own with the stand-in parts; PAUSE=seconds slows each step of the prior."""

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from portrait_backend.cli import main
from tests.cli import fake_parts

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background has it ignored
fake_parts.BallPrior.pause = float(os.environ.get("PAUSE", "0"))
fake_parts.BallPrior.steps = 100
fake_parts.install(pytest.MonkeyPatch())
sys.exit(main())
