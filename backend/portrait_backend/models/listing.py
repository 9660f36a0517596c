"""What there is to say of each model: the one source of `models list`, of the server's answer and of the panel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from portrait_backend.models.catalogue import Hub, Model
from portrait_backend.models.converted import converted_path
from portrait_backend.models.store import read_record, state_of


def facts(model: Model, folder: Path) -> dict[str, Any]:
    """Return what there is to say of a model, as JSON data."""
    record = read_record(model, folder) or {}
    hub = model.source if isinstance(model.source, Hub) else None
    return {
        "name": model.name,
        "title": model.title,
        "purpose": model.purpose,
        "state": state_of(model, folder),
        "path": str(folder / model.name),
        "page": model.source.page,
        "manual": hub is None,
        "repository": hub.repository if hub else None,
        "revision": hub.revision if hub else None,
        "pinned": hub.pinned if hub else False,
        "commit": record.get("source", {}).get("commit") or None,
        "size": model.size or None,
        "size_text": model.size_text,
        "licence": model.licence,
        "licence_page": model.licence_page,
        "commercial_use": model.commercial,
        "note": model.note,
        "convert": model.convert,
        "converted": model.convert is not None and converted_path(model.convert, folder).is_file(),
        "files": [{"path": f.path, "size": f.size or None, "exact": f.exact, "sha256": f.sha256 or "unknown"} for f in model.files],
    }
