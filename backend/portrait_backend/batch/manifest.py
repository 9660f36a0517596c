"""Read a manifest: a table of photos with the settings that each of them has of its own.

CSV has one column per setting (``mesh.faces``, as in `portrait_shared.settings`), JSON Lines has one object per line. Everything
is checked before anything is computed.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import SettingInfo, from_dict, unknown_fields, walk

PHOTO, NAME = "photo", "name"
OWN_COLUMNS = (PHOTO, NAME)
DELIMITERS = ",;\t"
"""Spreadsheets write one of these, by the language they are set to."""
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
SUFFIXES = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


@dataclass(frozen=True)
class Row:
    """One photo: its path, the name of its folder (None: the template makes it), its settings in nested JSON form, where it stands."""

    photo: Path
    name: str | None
    settings: dict[str, Any]
    where: str


def read_manifest(path: Path) -> list[Row]:
    """Return the rows of a manifest; a relative photo is looked for beside the manifest.

    Raises PortraitDiffusionError manifest-unreadable, manifest-invalid, setting-invalid.
    """
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise PortraitDiffusionError(
            "manifest-unreadable", f"{path} is neither .csv nor .jsonl", "Give a manifest as docs/batch.md describes"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        entries = list(_csv_entries(text, path.name) if kind == "csv" else _json_entries(text, path.name))
    except (OSError, ValueError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PortraitDiffusionError(
            "manifest-unreadable", f"can't read {path} ({reason})", "Give a manifest as docs/batch.md describes, in UTF-8"
        ) from error
    if not entries:
        raise PortraitDiffusionError("manifest-invalid", f"{path} names no photo", "Give it a line for each photo")
    return [_row(entry, where, path.parent) for entry, where in entries]


def _csv_entries(text: str, name: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield ({column: value}, where) for every line with something in it; empty cells are left out."""
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(DELIMITERS, key=header.count), strict=True)
    columns = [column.strip() for column in next(reader, [])]
    for column in columns:
        if columns.count(column) > 1:
            raise _invalid(f"{name} line 1", f"the column {column!r} is there twice", "Keep one of them")
    _check_columns(columns, f"{name} line 1")
    for cells in reader:
        where = f"{name} line {reader.line_num}"
        if len(cells) > len(columns) and any(cell.strip() for cell in cells[len(columns) :]):
            raise _invalid(where, f"{len(cells)} cells under {len(columns)} columns", "Put text with a comma between double quotes")
        found = {column: cell.strip() for column, cell in zip(columns, cells, strict=False) if cell.strip()}
        if found:
            yield {column: _value(column, cell) for column, cell in found.items()}, where


def _json_entries(text: str, name: str) -> Iterator[tuple[dict[str, Any], str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _invalid(where, f"it is no JSON ({error})", "Write one JSON object per line") from error
        if not isinstance(entry, dict):
            raise _invalid(where, "it is no JSON object", 'Write {"photo": "..."} with settings beside it')
        given = {key: value for key, value in entry.items() if value is not None}
        _check_columns(given, where)
        yield given, where


def _check_columns(names: Mapping[str, Any] | list[str], where: str) -> None:
    """Raise PortraitDiffusionError ``manifest-invalid`` unless every name is `photo`, `name` or a setting, and `photo` is there."""
    data = names if isinstance(names, Mapping) else dict.fromkeys(names)
    if PHOTO not in data:
        raise _invalid(where, f"there is no {PHOTO!r}", f"Name the photo's file under {PHOTO!r}")
    for column in unknown_fields({name: value for name, value in data.items() if name not in OWN_COLUMNS}):
        near = _near(column)
        raise _invalid(
            where, f"there is no setting {column!r}", f"Did you mean {near!r}?" if near else "docs/batch.md says which there are"
        )


def _near(column: str) -> str:
    """Return the setting that is probably meant: by the name of its option, or by its spelling; "" if there is none."""
    infos = walk()
    wanted = column.strip("-").replace("_", "-").lower()
    for info in infos:
        short = info.path.rpartition(".")[2].replace("_", "-")
        if wanted in (short, *(option.strip("-") for option in info.options)):
            return info.path
    return next(iter(difflib.get_close_matches(column, [*OWN_COLUMNS, *(info.path for info in infos)], 1)), "")


def _value(column: str, cell: str) -> Any:
    """Return a CSV cell as the type its setting has; text that is none stays text and is refused with the others."""
    info = _INFOS.get(column)
    if info is None:
        return cell
    if info.many:
        return [part.strip() for part in cell.split(",")]
    try:
        return _parsed(info, cell)
    except ValueError:
        return cell


def _parsed(info: SettingInfo, cell: str) -> Any:
    if info.type is not bool:
        return info.type(cell)
    if cell.lower() not in TRUE + FALSE:
        raise ValueError(cell)
    return cell.lower() in TRUE


def _row(entry: dict[str, Any], where: str, folder: Path) -> Row:
    photo, name = entry.get(PHOTO), entry.get(NAME)
    if not isinstance(photo, str) or not photo or "\0" in photo:
        raise _invalid(where, f"{PHOTO} = {photo!r} is no file name", "Name the photo's file")
    if name is not None and not isinstance(name, str):
        raise _invalid(where, f"{NAME} = {name!r} is no text", "Name the folder for this head")
    settings = nested({key: value for key, value in entry.items() if key not in OWN_COLUMNS})
    try:
        from_dict(settings)
    except PortraitDiffusionError as error:
        raise PortraitDiffusionError(error.code, f"{where}: {error.message}", error.hint) from error
    return Row(folder / Path(photo).expanduser(), name, settings, where)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"mesh": {"faces": 1}} for {"mesh.faces": 1}; what is nested already stays so."""
    made: dict[str, Any] = {}
    for key, value in flat.items():
        group, _, name = key.rpartition(".")
        merge(made, {group: {name: value}} if group else {key: value})
    return made


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Put the values of `over` into `base`, group by group, and return it."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key, {}), dict):
            base[key] = merge(dict(base.get(key, {})), value)
        else:
            base[key] = value
    return base


def _invalid(where: str, what: str, hint: str) -> PortraitDiffusionError:
    return PortraitDiffusionError("manifest-invalid", f"{where}: {what}", hint)


_INFOS = {info.path: info for info in walk()}
