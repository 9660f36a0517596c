"""The README is true: its commands, options, links and example."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from portrait_backend import __version__
from portrait_shared.settings import walk

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [p for folder in ("", "docs", "examples") for p in (ROOT / folder).glob("*.md")]


def test_set_up_is_exactly_two_commands() -> None:
    commands = re.findall(r"^python3 -m pip install .*$", README, re.MULTILINE)
    assert commands == [
        "python3 -m pip install -c constraints.txt . && portrait-diffusion generate examples/astronaut.png -o out/",
        'python3 -m pip install -c constraints.txt -e ".[dev]" && python3 -m pytest',
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_and_pictures_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_options_in_the_readme_exist() -> None:
    known = {name for info in walk() for name in info.options} | {"--json", "--help", "--cameras", "--photos"}
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    assert used and used <= known, used - known


def test_the_python_example_is_valid() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    compile(example, "README.md", "exec")
    from portrait_backend.pipeline import generate

    assert "Settings(preset=" in example and generate.__module__ == "portrait_backend.pipeline"


def test_constraints_pin_every_dependency() -> None:
    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pinned = {plain(line.split("==")[0]): line.split("==")[1] for line in lines}
    assert {plain(re.split(r"[<>=!~ \[]", d)[0]) for d in asked} <= pinned.keys()
    assert not {"torchvision", "torchaudio"} & pinned.keys()
    assert pinned["torch"] == "2.13.0" and pinned["numpy"] == "1.26.4"


def test_the_changelog_has_this_version() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
