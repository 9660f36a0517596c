"""Time left: from the pace so far, with the weights of earlier jobs."""

from __future__ import annotations

import pytest

from portrait_backend.server.estimate import EARLY_SECONDS, TYPICAL, Estimate
from portrait_backend.stages import plan
from portrait_shared.settings import OutputSettings, Settings

PLAN = ["portrait", "prior", "mesh"]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_said_before_anything_is_known() -> None:
    clock = Clock()
    estimate = Estimate(clock)
    estimate.start("1", "draft", PLAN)
    assert estimate.left("1", "portrait", 1, 3) is None
    assert estimate.left("1", "unheard of", 1, 3) is None and estimate.left("2", "prior", 1, 3) is None


def test_a_first_job_counts_on_typical_weights_at_its_own_pace() -> None:
    clock = Clock()
    estimate = Estimate(clock)
    estimate.start("1", "draft", PLAN)
    estimate.left("1", "portrait", 0, 3)
    clock.now += 10
    half = TYPICAL["portrait"] + TYPICAL["prior"] / 2
    assert estimate.left("1", "prior", 5, 10) == pytest.approx(10 / half * (TYPICAL["prior"] / 2 + TYPICAL["mesh"]))


def finish(estimate: Estimate, clock: Clock, job: str, seconds: dict[str, float], completed: bool = True) -> None:
    estimate.start(job, "draft", PLAN)
    for stage, took in seconds.items():
        estimate.left(job, stage, 0, 10)
        clock.now += took
    estimate.finish(job, completed)


def test_later_jobs_know_how_long_the_stages_took() -> None:
    clock = Clock()
    estimate = Estimate(clock)
    finish(estimate, clock, "1", {"portrait": 2, "prior": 20, "mesh": 8})
    estimate.start("2", "draft", PLAN)
    clock.now += EARLY_SECONDS / 4
    assert estimate.left("2", "portrait", 0, 3) == pytest.approx(30)
    clock.now += 12 - EARLY_SECONDS / 4
    assert estimate.left("2", "prior", 5, 10) == pytest.approx(18)
    clock.now += 12  # twice as slow as last time
    assert estimate.left("2", "prior", 5, 10) == pytest.approx(36)
    estimate.finish("2", True)
    estimate.start("3", "full", PLAN)
    assert estimate.left("3", "portrait", 1, 3) is None, "another preset is another kind"


def test_a_job_that_failed_or_was_resumed_teaches_nothing() -> None:
    clock = Clock()
    estimate = Estimate(clock)
    finish(estimate, clock, "1", {"portrait": 2, "prior": 20, "mesh": 8}, completed=False)
    finish(estimate, clock, "2", {"mesh": 8})
    estimate.start("3", "draft", PLAN)
    assert estimate.left("3", "portrait", 1, 3) is None


def test_the_plan_of_a_job() -> None:
    settings = Settings(stages=("prior", "restoration", "refinement"))
    assert plan(settings, False) == ["portrait", "prior", "restoration", "refinement", "mesh", "views", "turntable"]
    assert plan(settings, True) == ["refinement", "texture", "views", "turntable"]
    assert plan(Settings(output=OutputSettings(turntable="none")), False) == ["portrait", "prior", "mesh", "views"]
