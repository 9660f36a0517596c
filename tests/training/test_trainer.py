"""The shared training loop on a problem whose answer is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from portrait_backend.training.trainer import FLOOR, WARM_UP, TrainOptions, schedule, train, update_average

pytestmark = pytest.mark.filterwarnings("ignore")


class Line(nn.Module):
    """Finds y = 2 x - 1; breaks from a given step on."""

    def __init__(self, network: nn.Linear) -> None:
        super().__init__()
        self.network, self.calls, self.broken_from = network, 0, 10**9

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        error = (self.network(x).float() - (2 * x - 1)).pow(2).mean()
        return {"total": error if self.calls < self.broken_from else error * torch.nan}


class LineRecipe:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = nn.Linear(1, 1)
        self.module = Line(self.network)
        self.pictures: list[str] = []

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Any]:
        return {"x": torch.randn(count, 1, generator=generator)}

    def evaluate(self, network: nn.Module, picture: Path) -> dict[str, float]:
        self.pictures.append(picture.name)
        return {"slope": float(network.weight.detach())}

    def config(self) -> dict[str, Any]:
        return {"inputs": 1}


def options(out: Path, steps: int) -> TrainOptions:
    return TrainOptions(data=out, out=out, steps=steps, batch=64, learning_rate=0.1, save_every=50, evaluate_every=100)


def test_it_learns_averages_logs_and_shows(tmp_path: Path) -> None:
    recipe = LineRecipe()
    state = torch.load(train(recipe, options(tmp_path, 300)), weights_only=True)
    for name in ("network", "average"):
        torch.testing.assert_close(state[name]["weight"], torch.tensor([[2.0]]), atol=0.1, rtol=0)
        torch.testing.assert_close(state[name]["bias"], torch.tensor([-1.0]), atol=0.1, rtol=0)
    assert state["step"] == 300 and state["config"] == {"inputs": 1}
    assert recipe.pictures == ["samples_000100.png", "samples_000200.png", "samples_000300.png"]
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [100, 200, 300]
    assert records[-1]["total"] < 0.1 * records[0]["total"] and abs(records[-1]["validation"]["slope"] - 2) < 0.1


def test_it_resumes_where_it_stopped_and_leaves_a_finished_run_alone(tmp_path: Path) -> None:
    checkpoint = train(LineRecipe(), options(tmp_path, 60))
    first = torch.load(checkpoint, weights_only=True)
    again = LineRecipe()
    assert train(again, options(tmp_path, 60)) == checkpoint and again.module.calls == 0
    longer = LineRecipe()
    train(longer, options(tmp_path, 90))
    second = torch.load(checkpoint, weights_only=True)
    assert longer.module.calls == 30 and second["step"] == 90 and second["seconds"] > first["seconds"]
    assert not torch.equal(first["network"]["weight"], second["network"]["weight"])


def test_the_same_seed_trains_the_same_weights(tmp_path: Path) -> None:
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        home = tmp_path / name
        checkpoint = train(LineRecipe(), replace(options(home, 20), seed=seed))
        runs.append(torch.load(checkpoint, weights_only=True)["network"]["weight"])
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_a_loss_that_is_not_finite_stops_it_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    recipe = LineRecipe()
    recipe.module.broken_from = 70
    with pytest.raises(FloatingPointError, match="at step 69"):
        train(recipe, options(tmp_path, 100))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 50 and bool(torch.isfinite(state["network"]["weight"]).all())


def test_schedule_and_average_at_known_points() -> None:
    assert schedule(0, WARM_UP) == 1 and schedule(0, 0) == pytest.approx(1 / WARM_UP)
    assert schedule(1, 10**6) == pytest.approx(FLOOR) and schedule(0.5, 10**6) == pytest.approx((1 + FLOOR) / 2)
    average, network = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(average.weight)
    nn.init.ones_(network.weight)
    update_average(average, network, step=1)
    assert float(average.weight.detach()) == pytest.approx(1 - 2 / 11)
    update_average(average, network, step=10**9)
    assert float(average.weight.detach()) == pytest.approx(1 - 0.998 * 2 / 11)
