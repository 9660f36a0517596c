"""A headless Chromium that opens a page from disk: its DOM after the scripts ran, what it said on the console, and a picture of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--use-angle=swiftshader",  # WebGL without a GPU
    "--enable-unsafe-swiftshader",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no network: the page must stand alone
    "--enable-logging=stderr",
    "--virtual-time-budget=20000",
)


@dataclass(frozen=True)
class Page:
    """dom: the document after the scripts ran; console: one line per message; screenshot: a PNG."""

    dom: str
    console: list[str]
    screenshot: Path


def find() -> str | None:
    """Return the browser's path, None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def visit(browser: str, page: Path, folder: Path, size: tuple[int, int] = (1300, 2400)) -> Page:
    """Open `page` with a fresh profile in `folder`."""
    common = [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={size[0]},{size[1]}"]
    picture = folder / "page.png"
    run = subprocess.run([*common, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    subprocess.run([*common, f"--screenshot={picture}", page.as_uri()], capture_output=True, timeout=300, check=True)
    console = [line for line in run.stderr.splitlines() if re.search(r":CONSOLE[:(]", line)]
    return Page(run.stdout, console, picture)
