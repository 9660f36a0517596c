"""Download a model from the Hugging Face hub, or copy it from a mirror folder; resumable, checked, atomic.

Files gather in the model's part folder, which survives an interruption: finished files are not fetched again, and the download of
an unfinished one goes on inside it. `store.install` then checks them all and renames the folder.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from portrait_backend.models.catalogue import Hub, Model, ModelFile, WebPage
from portrait_backend.models.store import BLOCK, Report, install, part_folder, state_of
from portrait_shared.errors import PortraitDiffusionError

RESERVE = 256 * 2**20
"""Bytes that stay free on the disk."""
UNFINISHED = ".unfinished"
"""Ends the name of a file that has not arrived whole."""


class Source(Protocol):
    """Where files come from."""

    commit: str
    """What exactly is fetched, "" where nobody can tell."""

    def facts(self, files: Iterable[ModelFile]) -> dict[str, ModelFile]:
        """Return size and sha256 of each file as the source states them; raises if a file is not there."""

    def fetch(self, file: ModelFile, folder: Path, report: Report | None) -> None:
        """Put the file, as `facts` returned it, at its path below `folder`."""


def download(model: Model, folder: Path, mirror: Path | None = None, report: Report | None = None) -> Path:
    """Fetch and install a model; returns its folder. A complete one is left as it is.

    mirror: a folder that holds the files, or <name>/ with them, instead of the network. PortraitDiffusionError ``download-failed``,
    ``download-manual``, ``mirror-incomplete``, ``model-damaged``, ``disk-full``, ``download-running`` or ``extra-missing``.
    """
    if state_of(model, folder) == "installed":
        return folder / model.name
    source = open_source(model, mirror)
    try:
        stated = source.facts(model.files)
        expected = _agreed(model, stated)
        with _alone(model, folder):
            part = part_folder(model, folder)
            part.mkdir(parents=True, exist_ok=True)
            _check_disk(model, part, expected)
            for file in model.files:
                if not _finished(part / file.path, expected[file.path]):
                    source.fetch(stated[file.path], part, report)
            for leftover in part.rglob(f"*{UNFINISHED}"):
                leftover.unlink()
            return install(model, part, folder, expected, source.commit, report)
    except OSError as error:
        raise _disk_error(error, folder) from error


@contextmanager
def _alone(model: Model, folder: Path) -> Iterator[None]:
    """Keep a second download of the same model away; ``download-running``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{model.name}.lock"
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        what = f"another download of {model.name} is running"
        raise PortraitDiffusionError("download-running", what, "Wait for it, or end it", retryable=True) from error
    try:
        yield
    finally:
        lock.release()
        path.unlink(missing_ok=True)


def open_source(model: Model, mirror: Path | None) -> Source:
    """Return where the model comes from: the mirror, if one is given, else its repository."""
    if mirror is not None:
        return Mirror.find(model, mirror)
    refuse_manual(model)
    assert isinstance(model.source, Hub)
    return HubSource.open(model.source)


def refuse_manual(model: Model) -> None:
    """Raise ``download-manual`` for a model that only a person can download."""
    if isinstance(model.source, WebPage):
        names = ", ".join(file.path for file in model.files)
        hint = f"Download {names} from {model.source.page}, then: portrait-diffusion models download {model.name} --from FOLDER"
        raise PortraitDiffusionError("download-manual", f"{model.name} can't be fetched by a program", hint)


@dataclass
class Mirror:
    """A local folder with the files of a model, e.g. on a stick, or a snapshot folder of the hub's own cache."""

    folder: Path
    commit: str = ""

    @classmethod
    def find(cls, model: Model, mirror: Path) -> Mirror:
        """Return the mirror's folder of this model: mirror/<name>, or mirror itself, or the repository's folder in either."""
        inner = model.source.folder if isinstance(model.source, Hub) else ""
        candidates = [outer / below for outer in (mirror / model.name, mirror) for below in (inner, "")]
        missing = {c: [f.path for f in model.files if not (c / f.path).is_file()] for c in candidates}
        best = min(candidates, key=lambda c: len(missing[c]))
        if missing[best]:
            what = f"{mirror} has no {', '.join(missing[best][:3])}{' ...' if len(missing[best]) > 3 else ''} of {model.name}"
            hint = f"Copy the files of {model.source.page} there, under the same names"
            raise PortraitDiffusionError("mirror-incomplete", what, hint)
        return cls(best)

    def facts(self, files: Iterable[ModelFile]) -> dict[str, ModelFile]:
        """Return the sizes; who made the mirror, nobody knows, so it states no sha256."""
        return {file.path: replace(file, size=(self.folder / file.path).stat().st_size, sha256="", exact=True) for file in files}

    def fetch(self, file: ModelFile, folder: Path, report: Report | None) -> None:
        """Copy the file under another name, then rename it: what bears its name is whole."""
        source, target = self.folder / file.path, folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(target.name + UNFINISHED)
        total, done = source.stat().st_size, 0
        with source.open("rb") as reading, unfinished.open("wb") as writing:
            while block := reading.read(BLOCK):
                writing.write(block)
                done += len(block)
                if report is not None:
                    report(file.path, done, total)
        unfinished.replace(target)


@dataclass
class HubSource:
    """A repository of the Hugging Face hub, through its own client (which honours HF_ENDPOINT, HF_TOKEN and proxies)."""

    hub: Hub
    commit: str
    client: Any = field(repr=False)

    @classmethod
    def open(cls, hub: Hub) -> HubSource:
        """Find out which commit the revision is, so that all files come from the same one."""
        try:
            client = importlib.import_module("huggingface_hub").HfApi()
        except ImportError as error:
            raise PortraitDiffusionError(
                "extra-missing", str(error), "Install the full-scale parts: python3 -m pip install -c constraints.txt '.[full]'"
            ) from error
        with _HubErrors(hub):
            info = client.repo_info(hub.repository, revision=hub.revision, repo_type=hub.kind)
        return cls(hub, str(info.sha), client)

    def facts(self, files: Iterable[ModelFile]) -> dict[str, ModelFile]:
        """Return what the hub states: every size, and the sha256 of the large files."""
        remote = {self._remote(file.path): file for file in files}
        with _HubErrors(self.hub):
            listed = self.client.get_paths_info(self.hub.repository, list(remote), revision=self.commit, repo_type=self.hub.kind)
        found = {
            remote[entry.path].path: replace(remote[entry.path], size=entry.size, sha256=entry.lfs.sha256 if entry.lfs else "", exact=True)
            for entry in listed
            if entry.path in remote and hasattr(entry, "size")
        }
        for path, file in remote.items():
            if file.path not in found:
                raise PortraitDiffusionError(
                    "download-failed",
                    f"{self.hub.page} has no {path} at {self.commit[:12]}",
                    "Update portrait-diffusion: the source has changed",
                )
        return found

    def fetch(self, file: ModelFile, folder: Path, report: Report | None) -> None:
        """Fetch one file, going on where an earlier call stopped.

        The client's own hf_hub_download starts over after an interruption (since its version 2), which a file of 3 GB makes dear;
        its http_get goes on, with the same addresses, token, redirects and retries.
        """
        hub = importlib.import_module("huggingface_hub")
        address = hub.hf_hub_url(
            self.hub.repository,
            self._remote(file.path),
            repo_type=self.hub.kind,
            revision=self.commit,
            endpoint=self.client.endpoint,
        )
        target = folder / file.path
        unfinished = target.with_name(f"{target.name}.{self.commit[:12]}{UNFINISHED}")
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        if unfinished.is_file() and unfinished.stat().st_size > file.size:
            unfinished.unlink()
        with _HubErrors(self.hub), unfinished.open("ab") as stream:
            importlib.import_module("huggingface_hub.file_download").http_get(
                address,
                stream,
                resume_size=stream.tell(),
                headers=importlib.import_module("huggingface_hub.utils").build_hf_headers(),
                expected_size=file.size,
                displayed_filename=file.path,
                tqdm_class=_bar(report, file.path),
            )
        unfinished.replace(target)

    def _remote(self, path: str) -> str:
        return f"{self.hub.folder}/{path}" if self.hub.folder else path


class _HubErrors:
    """Turns the client's errors into ours: one line that says whether trying again helps."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, PortraitDiffusionError):
            return
        errors = importlib.import_module("huggingface_hub.errors")
        if isinstance(error, errors.GatedRepoError):
            hint = f"Accept its terms at {self.hub.page}, then log in: hf auth login"
            raise PortraitDiffusionError("download-failed", f"{self.hub.page} asks you to log in", hint) from error
        if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError | errors.RemoteEntryNotFoundError):
            hint = "Get the files from elsewhere and use --from, or update portrait-diffusion"
            raise PortraitDiffusionError("download-failed", f"{self.hub.page} is gone, or has changed", hint) from error
        if isinstance(error, errors.HTTPError | ConnectionError) or (isinstance(error, OSError) and error.errno is None):
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            hint = "Try again, it goes on where it stopped; without internet use --from FOLDER"
            raise PortraitDiffusionError("download-failed", f"{self.hub.page} can't be reached ({reason})", hint, retryable=True) from error


def _bar(report: Report | None, name: str) -> type:
    """Return what the client takes for a progress bar: it reports instead of drawing."""

    class Bar:
        def __init__(self, *, total: int | None = None, initial: int = 0, **options: Any) -> None:
            self.n, self.total = initial, total

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            return None

        def update(self, n: int = 1) -> None:
            self.n += n
            if report is not None:
                report(name, self.n, self.total or 0)

    return Bar


def _agreed(model: Model, stated: Mapping[str, ModelFile]) -> dict[str, ModelFile]:
    """Return what to expect of each file: the catalogue's word where it has one, else the source's."""
    result = {}
    for file in model.files:
        theirs = stated[file.path]
        if (file.exact and file.size != theirs.size) or (file.sha256 and theirs.sha256 not in ("", file.sha256)):
            what = f"{file.path} of {model.name} is another file at its source now ({theirs.size} bytes) than the one known here"
            raise PortraitDiffusionError("model-damaged", what, "Update portrait-diffusion, or use --from with the files as they were")
        result[file.path] = replace(theirs, sha256=file.sha256 or theirs.sha256)
    return result


def _finished(path: Path, expected: ModelFile) -> bool:
    return path.is_file() and path.stat().st_size == expected.size


def _check_disk(model: Model, part: Path, expected: Mapping[str, ModelFile]) -> None:
    need = sum(file.size for file in expected.values() if not _finished(part / file.path, file))
    need -= sum(path.stat().st_size for path in part.rglob(f"*{UNFINISHED}"))
    free = shutil.disk_usage(part).free
    if need > 0 and free < need + RESERVE:
        what = f"{model.name} needs {(need + RESERVE) / 1e9:.1f} GB more in {part.parent}, {free / 1e9:.1f} GB are free"
        raise PortraitDiffusionError("disk-full", what, "Free space, or name another folder with --folder", retryable=True)


def _disk_error(error: OSError, folder: Path) -> PortraitDiffusionError:
    reason = error.strerror or str(error)
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return PortraitDiffusionError("disk-full", f"the disk of {folder} is full", "Free space and try again: it goes on", retryable=True)
    named = f" ({os.fspath(error.filename)})" if error.filename else ""
    return PortraitDiffusionError("output-not-writable", f"{folder} can't be written: {reason}{named}", "Name another folder with --folder")
