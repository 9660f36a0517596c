"""What previews cost a job: processor seconds that go into making and encoding them, while a draft runs as a server's worker runs it.

The reporter stands where the worker's stands, with the same limits: a stage asks it before it makes a preview, the engine before it
encodes one, and the encoded one ends up here. What runs in between is the preview's cost, without the lattice that the first
picture of a head makes: the views need it anyway.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from portrait_backend.radiance.head import Head
from portrait_backend.radiance.picture import PictureLattice
from portrait_backend.server.backstage import RunJob, Update
from portrait_backend.server.engine import PipelineEngine
from portrait_backend.server.folders import JobFolder
from portrait_backend.server.worker import Throttle
from portrait_shared.settings import Settings, to_dict

PHOTO = Path(__file__).parent.parent / "examples" / "astronaut.png"


@dataclass(frozen=True)
class Cost:
    """Processor seconds of a job and of its previews, all threads together; how many previews there were, and their bytes."""

    job: float
    previews: float
    count: int
    bytes: int


class Watch(Throttle):
    """A worker's reporter that counts the processor seconds between a wish for a preview and its arrival."""

    def __init__(self) -> None:
        super().__init__("0" * 32, self._arrived, lambda: False)
        self.seconds, self.count, self.bytes = 0.0, 0, 0
        self._asked: float | None = None

    def wants_preview(self) -> bool:
        """Say what the worker would say; if it is yes, the preview begins here."""
        wanted = super().wants_preview()
        if wanted and self._asked is None:
            self._asked = time.process_time()
        return wanted

    def leave_out(self, seconds: float) -> None:
        """Don't count what was just done."""
        if self._asked is not None:
            self._asked += seconds

    def report(self, stage: str, step: int, steps: int, metrics: dict[str, float], preview: bytes | None) -> None:
        """Pass on a report; if it has a preview, that ends here."""
        if preview is not None and self._asked is not None:
            self.seconds += time.process_time() - self._asked
        self._asked = None
        super().report(stage, step, steps, metrics, preview)

    def _arrived(self, update: Update) -> None:
        if update.preview is not None:
            self.count, self.bytes = self.count + 1, self.bytes + len(update.preview)


def preview_cost(photo: Path = PHOTO, settings: Settings | None = None) -> Cost:
    """Run a job (None: a draft) of a photo for somebody who looks at all its previews."""
    with tempfile.TemporaryDirectory() as path:
        folder = JobFolder(Path(path, "job"))
        folder.create(photo.read_bytes())
        engine, watch = PipelineEngine("cpu"), Watch()
        engine.warm_up()
        lattice = Head.picture_lattice

        def picture_lattice(head: Head) -> PictureLattice:
            start = time.process_time()
            made = lattice(head)
            watch.leave_out(time.process_time() - start)
            return made

        start = time.process_time()
        with mock.patch.object(Head, "picture_lattice", picture_lattice):
            engine.run(RunJob("0" * 32, str(folder.path), to_dict(settings or Settings(preset="draft")), photo.name), watch)
        return Cost(time.process_time() - start, watch.seconds, watch.count, watch.bytes)
