"""What the folder of a head is called: a template filled in for each photo, or the name that the manifest gives it.

A name is a path below the output folder. What comes from a file name or a manifest can't lead out of it.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping
from pathlib import Path

from portrait_shared.errors import PortraitDiffusionError

TEMPLATE = "{stem}"
FIELDS = ("stem", "index", "sha", "parent", "preset", "seed")
SHA_DIGITS = 12
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*]')
"""Not allowed in a file name on one system or another."""
EDGES = re.compile(r"^[\s.]+|[\s.]+$")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
MAX_PART_BYTES = 200
"""Of one folder's name in UTF-8: file systems take 255, the hidden working folder adds 18."""
MAX_TEXT_BYTES = 160
"""Of what is filled in: a longer file name is cut."""


def check_template(template: str) -> str:
    """Return the template; raises PortraitDiffusionError ``name-invalid`` if it can't be filled in."""
    try:
        parts = list(string.Formatter().parse(template))
        known = all(field is None or (field in FIELDS and not conversion) for _, field, _, conversion in parts)
        if not known or not any(field for _, field, _, _ in parts):
            raise ValueError("it has no field that there is" if known else "there is no such field")
        fill(template, dict.fromkeys(FIELDS, "x") | {"index": 1, "seed": 1})
    except (ValueError, LookupError) as error:
        fields = ", ".join(f"{{{field}}}" for field in FIELDS)
        raise PortraitDiffusionError("name-invalid", f"--name {template!r} can't be filled in ({error})", f"Use {fields}") from error
    return template


def fill(template: str, values: Mapping[str, object]) -> str:
    """Return the template with its fields filled in: text is made fit for a file name first, so only the template makes folders."""
    clean = {key: safe(value) if isinstance(value, str) else value for key, value in values.items()}
    return string.Formatter().vformat(template, (), clean)


def uses(template: str, field: str) -> bool:
    """Tell whether a template has a field."""
    return any(name == field for _, name, _, _ in string.Formatter().parse(template))


def safe(text: str) -> str:
    """Return text as a part of a file name: what a file system forbids becomes "_", no dots or spaces at its ends."""
    short = text.encode("utf-8", "replace")[:MAX_TEXT_BYTES].decode("utf-8", "ignore")
    return EDGES.sub("", FORBIDDEN.sub("_", short)) or "_"


def checked(name: str, where: str) -> str:
    """Return a relative path in one spelling; raises PortraitDiffusionError ``name-invalid`` if it is none or leads elsewhere."""
    parts = name.split("/")
    for part in parts:
        fault = _fault(part)
        if fault:
            raise PortraitDiffusionError(
                "name-invalid", f"{where}: the name {name[:200]!r} {fault}", "Give it another --name, or one in the manifest"
            )
    return "/".join(parts)


def _fault(part: str) -> str:
    if not part:
        return "has an empty part"
    if part.startswith("."):
        return "has a part that starts with a dot"
    if FORBIDDEN.search(part) or part != part.strip() or part.endswith(".") or RESERVED.fullmatch(part):
        return "is no name that every system allows"
    return "is too long" if len(part.encode("utf-8", "replace")) > MAX_PART_BYTES else ""


def check_apart(names: Iterable[tuple[str, str]], taken: Iterable[str]) -> None:
    """Raise PortraitDiffusionError ``name-clash`` if two of (name, whose) are the same folder, or one lies in the other.

    Upper and lower case count as the same: they are on some file systems. `taken` names belong to the batch itself.
    """
    folders: dict[str, str] = {name.lower(): "the batch itself" for name in taken}
    parents: dict[str, str] = {}
    for name, whose in names:
        key = name.lower()
        above = ["/".join(key.split("/")[:count]) for count in range(1, key.count("/") + 1)]
        other = folders.get(key) or parents.get(key) or next((folders[path] for path in above if path in folders), None)
        if other is not None:
            raise PortraitDiffusionError(
                "name-clash",
                f"{other} and {whose} would share the folder {name!r}",
                "Tell them apart with --name '{stem}-{sha}' or '{parent}/{stem}', or by a column name in the manifest",
            )
        folders[key] = whose
        parents.update(dict.fromkeys(above, whose))


def inside(output: Path, name: str) -> Path:
    """Return the folder `name` below `output`; raises PortraitDiffusionError ``name-invalid`` if a link leads it elsewhere."""
    folder = output / name
    if not folder.resolve().is_relative_to(output.resolve()):
        raise PortraitDiffusionError(
            "name-invalid", f"{folder} is a link to a place outside {output}", "Remove the link, or take another --name"
        )
    return folder
