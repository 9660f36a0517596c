"""What the jobs tell whoever counts them."""

from __future__ import annotations

from portrait_shared.protocol import JobState


class Tally:
    """Counts nothing; `metrics` does."""

    def stage(self, job: str, stage: str) -> None:
        """A job has come to a stage."""

    def ended(self, job: str, state: JobState) -> None:
        """A job has ended, or waits for another worker (state queued)."""
