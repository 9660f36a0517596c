"""A model of the catalogue's form, small enough for tests."""

from __future__ import annotations

from portrait_backend.models.catalogue import Hub, Model, ModelFile

HEAVY = bytes(range(256)) * 40
FILES = {"config.json": b"{}", "unet/weights.safetensors": HEAVY}
MODEL = Model(
    name="tiny",
    title="Tiny",
    purpose="tests",
    source=Hub("someone/tiny", "main"),
    licence="none",
    licence_page="https://example.org",
    commercial="unclear",
    files=(ModelFile("config.json"), ModelFile("unet/weights.safetensors")),
)
