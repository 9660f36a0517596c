"""Half precision where it pays only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from portrait_backend.precision import bf16_autocast, computes_bf16


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    computes_bf16.cache_clear()
    yield
    computes_bf16.cache_clear()


@pytest.mark.parametrize(
    ("units", "pays"), [({}, False), ({"avx2": True, "avx512_f": True}, False), ({"amx_bf16": True}, True), ({"avx512_bf16": True}, True)]
)
def test_a_processor_needs_units_for_it(units: dict[str, bool], pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    network, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    assert computes_bf16("cpu") is pays
    with bf16_autocast("cpu"):
        assert network(x).dtype == (torch.bfloat16 if pays else torch.float32)
    with bf16_autocast("cpu", enabled=False):
        assert network(x).dtype == torch.float32


def test_an_older_torch_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not computes_bf16("cpu")


def test_an_emulating_gpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: asked.append(including_emulation) or False)
    assert not computes_bf16("cuda") and asked == [False]
