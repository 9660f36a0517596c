"""Manifests: what they may say, and that whatever is wrong with one is told before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portrait_backend.batch.manifest import merge, nested, read_manifest
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import from_dict, get, walk

CSV = "photo,name,preset,seed,mesh.faces,prior.fit_shape,stages\nanna.jpg,Anna,draft,7,20000,no,prior\n\nsub/bert.png,,,,,,\n"


def written(folder: Path, text: str, name: str = "m.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text(text, encoding=encoding)
    return path


def refusal(path: Path) -> PortraitDiffusionError:
    with pytest.raises(PortraitDiffusionError) as caught:
        read_manifest(path)
    return caught.value


def test_csv_has_types_and_empty_cells_are_not_given(tmp_path: Path) -> None:
    anna, bert = read_manifest(written(tmp_path, CSV))
    assert anna.photo == tmp_path / "anna.jpg" and anna.name == "Anna"
    assert anna.settings == {"preset": "draft", "seed": 7, "mesh": {"faces": 20000}, "prior": {"fit_shape": False}, "stages": ["prior"]}
    assert bert.photo == tmp_path / "sub/bert.png" and bert.name is None and bert.settings == {} and bert.where == "m.csv line 4"


@pytest.mark.parametrize("delimiter", [";", "\t", ","])
def test_csv_of_any_spreadsheet(tmp_path: Path, delimiter: str) -> None:
    text = f'photo{delimiter}seed\r\n"a, b;\tc.jpg"{delimiter}7\r\n'
    (row,) = read_manifest(written(tmp_path, text, encoding="utf-8-sig"))
    assert row.photo.name == "a, b;\tc.jpg" and row.settings == {"seed": 7}


def test_json_lines_nested_or_dotted(tmp_path: Path) -> None:
    lines = [{"photo": "a.jpg", "mesh": {"faces": 5000}, "seed": None}, {"photo": "/b.jpg", "mesh.faces": 6000, "mesh.texture_size": 512}]
    text = "\n".join(json.dumps(line) for line in lines) + "\n\n"
    a, b = read_manifest(written(tmp_path, text, "m.jsonl"))
    assert a.settings == {"mesh": {"faces": 5000}} and b.settings == {"mesh": {"faces": 6000, "texture_size": 512}}
    assert b.photo == Path("/b.jpg")


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [
        ("", "manifest-invalid", "line 1: there is no 'photo'"),
        ("seed\n3\n", "manifest-invalid", "there is no 'photo'"),
        ("photo,colour\na.jpg,red\n", "manifest-invalid", "there is no setting 'colour'"),
        ("photo,seed,seed\na.jpg,1,2\n", "manifest-invalid", "twice"),
        ("photo,seed\na.jpg,1,2\n", "manifest-invalid", "line 2: 3 cells under 2 columns"),
        ("photo,seed\n,1\n", "manifest-invalid", "line 2: photo = None"),
        ("photo,seed\na.jpg,many\n", "setting-invalid", "line 2: seed = 'many' must be a whole number"),
        ("photo,mesh.faces\na.jpg,-1\n", "setting-invalid", "mesh.faces = -1 must be between"),
        ("photo,prior.fit_shape\na.jpg,perhaps\n", "setting-invalid", "must be true or false"),
        ("photo,preset\na.jpg,best\n", "setting-invalid", "must be one of draft"),
        ("photo\n", "manifest-invalid", "names no photo"),
        ('photo\n"a.jpg\n', "manifest-unreadable", ""),
    ],
)
def test_what_is_wrong_with_a_csv_is_told_with_its_line(tmp_path: Path, text: str, code: str, part: str) -> None:
    error = refusal(written(tmp_path, text))
    assert error.code == code and part in error.message


@pytest.mark.parametrize(
    ("column", "meant"), [("faces", "mesh.faces"), ("texture-size", "mesh.texture_size"), ("fit_steps", "prior.fit_steps"), ("sed", "seed")]
)
def test_an_unknown_column_names_the_setting_that_is_meant(tmp_path: Path, column: str, meant: str) -> None:
    error = refusal(written(tmp_path, f"photo,{column}\na.jpg,1\n"))
    assert error.code == "manifest-invalid" and repr(meant) in error.hint


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{", "manifest-invalid"),
        ("[1]", "manifest-invalid"),
        ("[" * 100_000, "manifest-invalid"),
        ('{"photo": 3}', "manifest-invalid"),
        ('{"photo": "a\\u0000.jpg"}', "manifest-invalid"),
        ('{"photo": "a.jpg", "name": 3}', "manifest-invalid"),
        ('{"photo": "a.jpg", "mesh": {"colour": 3}}', "manifest-invalid"),
        ('{"photo": "a.jpg", "mesh": 3}', "setting-invalid"),
        ('{"photo": "a.jpg", "seed": true}', "setting-invalid"),
    ],
)
def test_what_is_wrong_with_json_lines(tmp_path: Path, line: str, code: str) -> None:
    error = refusal(written(tmp_path, '{"photo": "fine.jpg"}\n' + line + "\n", "m.jsonl"))
    assert error.code == code and "m.jsonl line 2: " in error.message


def test_a_manifest_that_is_none(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere.csv").code == "manifest-unreadable"
    assert refusal(written(tmp_path, CSV, "m.xlsx")).code == "manifest-unreadable"
    (tmp_path / "latin.csv").write_bytes(b"photo\nJos\xe9.jpg\n")
    assert refusal(tmp_path / "latin.csv").code == "manifest-unreadable"


def test_every_setting_can_be_a_column(tmp_path: Path) -> None:
    infos = [info for info in walk() if not info.many and info.path != "device"]
    cells = [str(info.choices[-1] if info.choices else info.default).lower() for info in infos]
    (row,) = read_manifest(written(tmp_path, f"photo,{','.join(info.path for info in infos)}\na.jpg,{','.join(cells)}\n"))
    made = from_dict(row.settings)
    for info in infos:
        assert get(made, info.path) == (info.choices[-1] if info.choices else info.default), info.path


values = st.recursive(st.integers() | st.text(max_size=3), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3))


@given(st.dictionaries(st.sampled_from("abc"), values), st.dictionaries(st.sampled_from("abc"), values))
def test_merging_keeps_its_sources_and_the_later_value_wins(base: dict[str, Any], over: dict[str, Any]) -> None:
    before = json.dumps([base, over])
    made = merge(merge({}, base), over)
    assert json.dumps([base, over]) == before
    for key, value in over.items():
        if not isinstance(value, dict):
            assert made[key] == value
    assert made.keys() == base.keys() | over.keys()


def test_nested() -> None:
    assert nested({"seed": 1, "mesh.faces": 2, "mesh": {"smoothing": 3}}) == {"seed": 1, "mesh": {"faces": 2, "smoothing": 3}}
