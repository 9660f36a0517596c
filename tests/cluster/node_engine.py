"""What the nodes of the tests compute with: the light engine of the server's tests, or the real pipeline on an analytic head.

Reports say which process they come from, so that a test can kill it; a result's warnings say which stages ran there.
"""

from __future__ import annotations

import os
from pathlib import Path

from portrait_backend.server.backstage import RunJob
from portrait_backend.server.executor import Reporter
from tests.server.fake_engine import FakeEngine, runs

LIGHT = "tests.cluster.node_engine:LightEngine"
PIPELINE = "tests.server.fake_pipeline:FakePipeline"


class _Named:
    """A reporter that adds the process to every report."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.wants_preview, self.cancelled = reporter.wants_preview, reporter.cancelled

    def report(self, stage: str, step: int, steps: int, metrics: dict[str, float], preview: bytes | None) -> None:
        self._reporter.report(stage, step, steps, {**metrics, "pid": float(os.getpid())}, preview)


class LightEngine(FakeEngine):
    """Follows the photo's plan on a node."""

    def run(self, job: RunJob, reporter: Reporter) -> tuple[str, ...]:
        super().run(job, _Named(reporter))
        return ("ran " + " ".join(runs(Path(job.folder))),)
