"""Training of psi_SR on pairs that hold something to learn: a fine pattern that only a feature tells of."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from portrait_backend.prior.weights import load_super_resolution
from portrait_backend.radiance.super_resolution import upsample_bicubic
from portrait_backend.training.super_resolution_trainer import COARSE, SCALE, TrainSuperResolutionOptions, train_super_resolution


def pair(seed: int) -> dict[str, Tensor]:
    """A grey square; where the fourth feature is 1 the large picture has stripes one pixel wide, of which the small one shows nothing."""
    torch.manual_seed(seed)
    features = torch.zeros(1, 32, COARSE, COARSE)
    features[0, :3, 16:-16, 16:-16] = 0.5
    marked = upsample_bicubic(torch.rand(1, 1, 8, 8), COARSE // 8)[0, 0] > 0.7
    marked[:17], marked[-17:], marked[:, :17], marked[:, -17:] = False, False, False, False
    features[0, 3] = marked.float()
    stripes = 0.3 * (torch.arange(COARSE * SCALE) % 2 * 2 - 1) * marked.repeat_interleave(SCALE, 0).repeat_interleave(SCALE, 1)
    target = (upsample_bicubic(features[:, :3], SCALE) + stripes).clamp(0, 1)
    return {"features": features.half(), "target": (target * 255).round().byte()}


def test_it_becomes_better_than_bicubic_and_stops_at_its_end(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    for k in range(4):
        torch.save(pair(k), tmp_path / f"pairs/head_{k:04d}.pt")
    options = TrainSuperResolutionOptions(
        tmp_path / "data", tmp_path, heads=4, views=1, held_out=1, steps=100, batch=2, crop=24, evaluate_every=50
    )
    weights = train_super_resolution(options)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [50, 100]
    assert records[-1]["psnr"] > records[-1]["bicubic"] + 2
    with torch.no_grad():
        shown = load_super_resolution(weights)(pair(9)["features"].float())
    truth = pair(9)["target"].float() / 255
    assert (shown - truth).square().mean() < 0.6 * (upsample_bicubic(pair(9)["features"][:, :3].float(), SCALE) - truth).square().mean()
    train_super_resolution(options)  # at the end of its schedule: nothing is left to do
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
