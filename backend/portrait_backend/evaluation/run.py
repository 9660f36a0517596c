"""One evaluation: photos or finished jobs, the truth, other tools, ablations; scored, then written as a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from portrait_backend import __version__, devices
from portrait_backend.context import Context, Progress
from portrait_backend.evaluation import ablations, ground_truth, photo_scores
from portrait_backend.evaluation.candidates import Candidate, FieldHead, Job, find_peer, load_job, load_peer, no_job
from portrait_backend.evaluation.heads import HeadMaker, stage_context
from portrait_backend.evaluation.image_metrics import as_bytes
from portrait_backend.evaluation.mesh_file import MeshHead
from portrait_backend.evaluation.models import ModelState, default_folder, open_models
from portrait_backend.evaluation.photo_files import PHOTO_SUFFIXES, beside, find_photo, photos_in, subjects_of
from portrait_backend.evaluation.registration import Placing, onto_photo, register
from portrait_backend.evaluation.report import Report, write_report
from portrait_backend.evaluation.scores import Score
from portrait_backend.evaluation.view_models import ViewModel
from portrait_backend.job_folder import job_folder, read_record, write_record
from portrait_backend.models.inventory import starter_weights
from portrait_backend.pipeline import generate, versions
from portrait_backend.portrait.align import prepare_portrait
from portrait_backend.portrait.faces import FaceDetector
from portrait_backend.portrait.head_pose import load_landmark_model
from portrait_backend.portrait.mediapipe_tools import MediaPipeFaces
from portrait_backend.training.head_dataset import HeadDataset, finished_identities, load_heads
from portrait_backend.training.synthetic_portrait import portrait_of
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings, from_dict, to_dict

OWN_METHODS = ("field", "mesh")
"""The names of a job's own results."""
HEADS = "heads"
"""Folder in the report for the jobs that the evaluation itself made."""
GROUND_TRUTH_SEED = 1
"""Seed of the landmark noise on the inputs; `held_out` uses the same."""


@dataclass(frozen=True)
class Task:
    """What to evaluate. compare: other tools' results as (name, path); identities: how many of the truth's; say: for lines to the user."""

    jobs: tuple[Path, ...] = ()
    photos: Path | None = None
    truth: Path | None = None
    compare: tuple[tuple[str, Path], ...] = ()
    ablations: bool = False
    identities: int = 32
    models: Path | None = None
    download: bool = False
    say: Callable[[str], None] = field(default=lambda line: None)


Measured = tuple[list[Score], dict[str, NDArray[np.uint8]]]
"""Scores of a head, and its pictures by view."""


@dataclass
class _Run:
    task: Task
    settings: Settings
    context: Context
    folder: Path
    detector: FaceDetector
    models: list[ViewModel]
    report: Report

    def photos(self) -> None:
        """Score every job and photo, and the other tools' heads of the same photos."""
        cases = list(self.cases())
        for number, (subject, job, photo) in enumerate(cases):
            self.context.for_stage("photos").report(number, len(cases))
            with self.leaving_out(subject):
                folder = job or self.generated(photo, subject)
                self.photo(subject, load_job(folder, self.context.device), photo)
        if cases:
            self.context.for_stage("photos").report(len(cases), len(cases))

    def cases(self) -> Iterator[tuple[str, Path | None, Path]]:
        """Yield (subject, job folder or None, photo)."""
        found = photos_in(self.task.photos) if self.task.photos else []
        for subject, job in zip(subjects_of(self.task.jobs), self.task.jobs, strict=True):
            record = read_record(job)
            if record is None:
                raise no_job(job)
            yield subject, job, find_photo(record, [*found, *beside(job, record)])
        if not self.task.jobs:
            yield from ((subject, None, photo) for subject, photo in zip(subjects_of(found), found, strict=True))

    def generated(self, photo: Path, subject: str) -> Path:
        """Make the head of a photo, inside the report's folder; no film of it: nobody measures that."""
        folder = self.folder / HEADS / subject
        settings = replace(self.settings, output=replace(self.settings.output, turntable="none"))
        generate(photo, settings, self.context.on_progress, folder, self.context.cancelled)
        return folder

    def photo(self, subject: str, job: Job, photo: Path) -> None:
        """Score one job and the other tools' heads of its photo."""
        settings = from_dict(job.record["settings"])
        portrait = prepare_portrait(photo, stage_context(self.context, settings, "portrait"))
        self.report.photos[subject] = as_bytes(portrait.image)
        self.report.record["subjects"][subject] = _about(job.record)
        shape = load_landmark_model().shape(portrait.coefficients.double()).numpy()
        place = onto_photo(portrait.landmarks.double().numpy(), portrait.camera, shape)
        score = partial(
            photo_scores.score_photo, reference=photo_scores.reference_of(portrait, self.models, self.detector), models=self.models
        )
        for method, candidate in {**job.methods, **self.peers(subject, place, photo.stem)}.items():
            self.add(photo_scores.SECTION, subject, method, score(subject, method, candidate))
            if isinstance(candidate, MeshHead):
                self.report.meshes[subject, method] = candidate
        if self.task.ablations:
            small = photo_scores.reference_of(portrait, self.models, self.detector, photo_scores.WARP_SIZE)  # the rows are many
            self.ablate(subject, HeadMaker(portrait, self.context), partial(score, reference=small, section=ablations.SECTION))

    def add(self, section: str, subject: str, method: str, measured: Measured) -> None:
        """Put what was measured of a head into the report."""
        scores, pictures = measured
        self.report.scores += scores
        self.report.pictures[section, subject, method] = pictures

    def peers(self, subject: str, place: Placing, other_name: str = "") -> dict[str, Candidate]:
        """Return the other tools' heads of a subject, meshes placed by their faces."""
        found: dict[str, Candidate] = {}
        for name, path in self.task.compare:
            with self.leaving_out(f"{subject}, {name}"):
                where = find_peer(path, subject) or (find_peer(path, other_name) if other_name else None)
                if where is None:
                    raise PortraitDiffusionError("peer-missing", f"{path} holds nothing for {subject}", f"Put {subject}.glb there")
                peer = load_peer(where)
                found[name] = register(peer, place, self.detector) if isinstance(peer, MeshHead) else peer
        return found

    def ablate(self, subject: str, maker: HeadMaker, score: Callable[[str, str, MeshHead], Measured]) -> None:
        """Measure every row of the ablation study that this version can run on one photo or identity."""
        able, _ = ablations.split(self.settings)
        for number, (row, settings) in enumerate(able):
            self.context.for_stage("ablations").report(number, len(able))
            with self.leaving_out(f"{subject}, {row.method}"):
                self.add(ablations.SECTION, subject, row.method, score(subject, row.method, maker.mesh(settings)))
        self.context.for_stage("ablations").report(len(able), len(able))

    def truth(self, folder: Path) -> None:
        """Score heads made of a data set's input views, and the other tools' heads of them, against the truth."""
        data = load_heads(folder, self.task.identities, seed=GROUND_TRUTH_SEED, input_views=(0,))
        homes = finished_identities(folder)
        for row, identity in enumerate(data.input_id.tolist()):
            self.context.for_stage("ground truth").report(row, len(data.input_id))
            with self.leaving_out(homes[identity].name):
                self.identity(homes[identity], data, row)
        self.context.for_stage("ground truth").report(len(data.input_id), len(data.input_id))

    def identity(self, home: Path, data: HeadDataset, row: int) -> None:
        """Score one identity."""
        identity, name = int(data.input_id[row]), home.name
        maker = HeadMaker(portrait_of(data, row), self.context)
        score = partial(ground_truth.score_identity, data=data, identity=identity, home=home, models=self.models)
        candidates: dict[str, Candidate] = {
            "field": FieldHead(maker.head(self.settings).head, self.context.device),
            "mesh": maker.mesh(self.settings),
        }
        for method, candidate in {**candidates, **self.peers(name, ground_truth.onto_truth(data, identity, self.detector))}.items():
            with self.leaving_out(f"{name}, {method}"):
                self.add(ground_truth.SECTION, name, method, score(name, method, candidate))
        if self.task.ablations and not (self.task.photos or self.task.jobs):
            self.ablate(name, maker, partial(score, section=ablations.SECTION))

    @contextmanager
    def leaving_out(self, what: str) -> Iterator[None]:
        """Note what can't be evaluated and go on with the rest."""
        try:
            yield
        except PortraitDiffusionError as error:
            self.report.record["problems"].append(f"{what}: {error.message}")


def evaluate(
    task: Task,
    settings: Settings,
    output: Path,
    on_progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Report:
    """Evaluate and write the report to the folder `output`, which appears when it is complete.

    What can't be evaluated is named in the report; if nothing can, that is an error. Raises PortraitDiffusionError
    evaluation-empty, photos-empty, photo-not-found, data-empty and those of `job_folder`; Cancelled.
    """
    check(task)
    device = devices.choose_device(settings.device)
    context = Context(device, torch.float32, torch.Generator(device), on_progress, cancelled)
    with job_folder(output) as folder, MediaPipeFaces() as detector, devices.reproducible():
        models, states = open_models(task.models or default_folder(), detector, task.download, task.say)
        report = Report(_record(settings, context, states))
        run = _Run(task, settings, context, folder, detector, models, report)
        run.photos()
        if task.truth is not None:
            run.truth(task.truth)
        if not report.scores:
            raise PortraitDiffusionError(
                "evaluation-empty", "; ".join(report.record["problems"]) or "there was nothing to evaluate", "See docs/evaluation.md"
            )
        write_report(report, folder)
        write_record(folder, {key: report.record[key] for key in ("generator", "started", "settings", "weights", "problems")})
    return report


def check(task: Task) -> None:
    """Raise PortraitDiffusionError for a task that can't be carried out, before anything is computed."""
    if not (task.jobs or task.photos or task.truth):
        raise PortraitDiffusionError("evaluation-empty", "there is nothing to evaluate", "Give job folders, --photos or --ground-truth")
    for path, option in ((task.photos, "--photos"), (task.truth, "--ground-truth")):
        if path is not None and not path.is_dir():
            raise PortraitDiffusionError("data-not-found", f"{path} is not a folder", f"Give {option} a folder")
    if task.photos and not task.jobs and not photos_in(task.photos):
        raise PortraitDiffusionError("photos-empty", f"{task.photos} holds no photos", f"Put {', '.join(PHOTO_SUFFIXES[:4])} files there")
    names = [name for name, _ in task.compare]
    for name, path in task.compare:
        if name in OWN_METHODS or names.count(name) > 1:
            raise PortraitDiffusionError(
                "peer-name-taken", f"{name!r} names two results", "Give each a name of its own: --compare NAME=PATH"
            )
        if not path.exists():
            raise PortraitDiffusionError(
                "peer-missing", f"there is no {path} to compare as {name}", "Give --compare NAME=PATH of a file or folder"
            )


def _about(record: dict[str, Any]) -> dict[str, Any]:
    """Return what a report says about a job."""
    peaks = [stage["peak_memory_mb"] for stage in record.get("stages", ()) if stage.get("peak_memory_mb")]
    about = {key: record.get(key) for key in ("generator", "photo", "seed", "settings", "weights", "pose", "warnings", "seconds")}
    return about | {"peak_memory_mb": max(peaks, default=None)}


def _record(settings: Settings, context: Context, states: list[ModelState]) -> dict[str, Any]:
    _, unable = ablations.split(settings)
    return {
        "format": 1,
        "generator": f"portrait-diffusion {__version__}",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": devices.describe_device(context.device),
        "settings": to_dict(settings),
        "weights": {weight.name: weight.sha256 for weight in starter_weights()},
        "versions": versions(),
        "models": [state.record() for state in states],
        "subjects": {},
        "unavailable_ablations": [{"figure": row.figure, "name": row.name, "reason": reason} for row, reason in unable],
        "problems": [],
    }
