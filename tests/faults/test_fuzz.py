"""Damaged pictures and messages, by hypothesis: read, or refused as promised. With guidance by coverage: fuzz.py."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from tests.faults.fuzz import backstage_seeds, image_seeds, message_seeds, read_backstage, read_image, read_message

PICTURES, MESSAGES, BACKSTAGE = image_seeds(), message_seeds(), backstage_seeds()


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Return one of the seeds with a few bytes changed, put in or taken out, perhaps cut short."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(("change", "insert", "remove", "early")))
        if kind == "early":  # headers are where the damage is
            at = draw(st.integers(0, min(64, max(0, len(data) - 1))))
        new = draw(st.binary(min_size=1, max_size=4))
        data[at : at + (0 if kind == "insert" else len(new))] = b"" if kind == "remove" else new
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data)


QUICK = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(damaged(PICTURES))
def test_a_damaged_picture_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    read_image(data, tmp_path / "photo.img")


def test_the_seeds_are_pictures(tmp_path: Path) -> None:
    assert sum(read_image(data, tmp_path / "photo.img") for data in PICTURES) > len(PICTURES) - 5


@QUICK
@given(damaged(MESSAGES))
def test_a_damaged_message_is_read_or_refused(data: bytes) -> None:
    read_message(data)


@QUICK
@given(damaged(BACKSTAGE))
def test_a_damaged_message_of_a_worker_is_read_or_refused(data: bytes) -> None:
    read_backstage(data)


def test_a_decoder_that_fails_in_its_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by fuzzing: AVIF's raises RuntimeError."""
    from PIL import ImageFile

    def fail(image: object) -> None:
        raise RuntimeError("Failed to decode frame 0")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert not read_image(PICTURES[0], tmp_path / "photo.img")
