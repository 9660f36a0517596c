"""Guided fuzzing with atheris: `pip install atheris; python -m tests.faults.fuzz protocol|image|backstage [libFuzzer's options]`.

`-runs=100000` and `-max_total_time=600` limit it. Whatever is read ends in a value or in the error that the module promises; anything else
is a crash, and libFuzzer writes the input to a file. Without atheris: test_fuzz.py.
"""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from portrait_backend.portrait.read_image import FORMATS, MAX_SIDE, MIN_SIDE, read_photo
from portrait_backend.server import backstage as b
from portrait_shared import protocol as p
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings, from_dict, to_dict


def frames_of(data: bytes) -> list[bytes]:
    """Return frames: each is a length of two bytes and so many bytes; the last one has what is left."""
    frames, at = [], 0
    while at + 2 <= len(data) and len(frames) < 10:
        (length,) = struct.unpack_from(">H", data, at)
        frames.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    return frames


def joined(frames: list[bytes]) -> bytes:
    """Return what `frames_of` takes apart."""
    return b"".join(struct.pack(">H", len(frame)) + frame for frame in frames)


def read_message(data: bytes) -> None:
    """Read frames as the front end does, and what it does with settings."""
    frames = frames_of(data)
    p.request_of(frames)
    try:
        message = p.deserialise(frames)
    except p.ProtocolError:
        return
    assert p.deserialise(p.serialise(message)) == message
    if isinstance(message, p.JobSubmit):
        with contextlib.suppress(PortraitDiffusionError):
            from_dict(message.settings)


def read_backstage(data: bytes) -> None:
    """Read frames as the front end reads those of a worker."""
    with contextlib.suppress(p.ProtocolError):
        b.from_frames(frames_of(data))


def read_image(data: bytes, path: Path | None = None) -> bool:
    """Read bytes as a photo; tell whether they are one."""
    target = path or Path(tempfile.gettempdir()) / "fuzzed.img"
    target.write_bytes(data)
    try:
        photo = read_photo(target)
    except PortraitDiffusionError as error:
        assert error.code.startswith("image-") and error.hint, error
        return False
    assert photo.rgb.dtype == np.uint8 and photo.rgb.ndim == 3 and photo.rgb.shape[2] == 3
    assert max(photo.rgb.shape[:2]) <= MAX_SIDE and min(photo.rgb.shape[:2]) >= 1
    assert photo.alpha is None or photo.alpha.shape == photo.rgb.shape[:2]
    return True


def message_seeds() -> list[bytes]:
    """Return valid messages to start from."""
    made = [
        p.Hello("fuzz", "1", request="r"),
        p.JobSubmit("0" * 32, to_dict(Settings()), b"photo", "a.jpg", "a"),
        p.JobList(),
        p.JobResult("0" * 32, "views/front.png", 0, 1000),
        p.JobProgress("0" * 32, 1, "prior", 1, 2, 3.0, {"loss": 1.0}, b"jpeg"),
    ]
    return [joined(p.serialise(message)) for message in made]


def backstage_seeds() -> list[bytes]:
    """Return valid messages of a worker."""
    made = [b.Ready(b.DeviceInfo("cpu", "x", 1, 2)), b.Update("0" * 32, "prior", 1, 2, {"l": 1.0}, b"j"), b.Stopped("0" * 32)]
    return [joined(b.to_frames(message)) for message in made]


def image_seeds() -> list[bytes]:
    """Return a small picture in every format that Pillow writes, in several modes."""
    side = MIN_SIDE + 4
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 4), np.uint8)
    pixels[:, : side // 2] = 90
    found = []
    for mode in ("RGB", "RGBA", "L", "P", "CMYK", "1", "I;16"):
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
        for kind in FORMATS:
            buffer = io.BytesIO()
            with contextlib.suppress(OSError, KeyError, ValueError):
                image.save(buffer, kind)
                found.append(buffer.getvalue())
    return found


TARGETS: dict[str, tuple[Callable[[bytes], object], Callable[[], list[bytes]]]] = {
    "protocol": (read_message, message_seeds),
    "backstage": (read_backstage, backstage_seeds),
    "image": (read_image, image_seeds),
}


def main() -> None:
    """Fuzz one target until libFuzzer's limits or a crash."""
    import atheris

    target, seeds = TARGETS[sys.argv[1]]
    corpus = Path(tempfile.mkdtemp(prefix=f"fuzz-{sys.argv[1]}-"))
    for number, seed in enumerate(seeds()):
        (corpus / f"seed{number}").write_bytes(seed)
    warnings.simplefilter("ignore")
    largest = 1 << 16 if sys.argv[1] == "image" else 4096
    for module in ("portrait_shared.wire", "portrait_shared.protocol", "portrait_shared.settings", "portrait_backend.portrait.read_image"):
        for value in vars(sys.modules[module]).values():
            if callable(value) and getattr(value, "__module__", "") == module and hasattr(value, "__code__"):
                atheris.instrument_func(value)
    atheris.Setup(
        [sys.argv[0], f"-max_len={largest}", "-rss_limit_mb=4096", *sys.argv[2:], str(corpus)], lambda data: target(data) and None
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
