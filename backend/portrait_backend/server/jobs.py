"""The jobs of a server: what clients may do to them, what workers report about them, and who is told."""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from portrait_backend import stages
from portrait_backend.server import backstage as b
from portrait_backend.server.estimate import Estimate
from portrait_backend.server.folders import DataFolder
from portrait_backend.server.store import ForbiddenTransition, JobStore, Record
from portrait_backend.server.tally import Tally
from portrait_shared import protocol as p
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings, from_dict, to_dict

MAX_INTERRUPTIONS = 3
"""A job that was running at so many ends of the server, or of its worker on another machine, is not started again by itself:
it may be the reason."""
STARTS = (None, "texture")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quota:
    """What one client may have: jobs that wait, and bytes in the data folder (photos, results, finished stages)."""

    queued: int = 1000
    bytes: float = math.inf


class Jobs:
    """All jobs of a server; `notify(owner, message)` is called for what should be pushed."""

    def __init__(
        self,
        store: JobStore,
        data: DataFolder,
        notify: Callable[[str, p.Message], None],
        quota: Quota | None = None,
        tally: Tally | None = None,
    ) -> None:
        self.store, self._data, self._notify, self._quota = store, data, notify, quota or Quota()
        self._tally = tally or Tally()
        self._sizes: dict[str, int] = {}
        self._estimate = Estimate()
        self._progress: dict[str, p.JobProgress] = {}

    def recover(self) -> None:
        """Put right what an earlier server left: running jobs wait again, those being cancelled are cancelled."""
        self._data.remove_strays(self.store.ids())
        for record in self.store.in_state("cancelling"):
            self._change(record.info.id, "cancelled", finished=time.time())
        for record in self.store.in_state("running"):
            if record.interruptions < MAX_INTERRUPTIONS:
                self._change(record.info.id, "queued")
            else:
                self.died(record.info.id, "the server stopped each time while this job was running")

    # What clients ask for

    def submit(self, owner: str, message: p.JobSubmit) -> p.JobInfo:
        """Queue a job, or return the one that the same submission made before."""
        job = _checked_id(message.job)
        settings = from_dict(message.settings)
        stages.check(settings)
        stages.check_client(settings)
        parent = None if message.parent is None else self._own(owner, message.parent)
        if message.start is not None:
            settings = _keeping_geometry(settings, message.start, parent)
        photo = self._photo(message, parent)
        info = p.JobInfo(
            id=job,
            name=_clean(message.name) or "Portrait",
            state="queued",
            created=time.time(),
            seed=settings.seed,
            settings=to_dict(settings),
            photo_sha256=p.sha256(photo),
            photo_name=_clean(message.photo_name.replace("\\", "/").rpartition("/")[2]) or (parent.info.photo_name if parent else ""),
            parent=message.parent,
            start=message.start,
        )
        earlier = self._find(job)
        if earlier is not None:
            return self._same_submission(owner, earlier, info)
        self._check_quota(owner, len(photo))
        folder = self._data.job(job)
        try:
            folder.create(photo)
            if parent is not None and message.start is not None:
                folder.keep_geometry(self._data.job(parent.info.id))
            record = self.store.add(info, owner)
        except (OSError, sqlite3.OperationalError) as error:
            folder.remove()
            hint = "Free some space for the backend's data"
            raise PortraitDiffusionError("disk-full", f"the job can't be stored ({error})", hint, retryable=True) from error
        log.info("job %s queued", job, extra={"job": job, "state": "queued", "client": owner})
        self._notify(owner, p.JobStateChanged(record.info))
        return record.info

    def _check_quota(self, owner: str, more: int) -> None:
        if self.store.count("queued", owner) >= self._quota.queued:
            what = f"{self._quota.queued} jobs are waiting already"
            raise PortraitDiffusionError("queue-full", what, "Wait, or cancel some", retryable=True)
        if math.isfinite(self._quota.bytes) and self._used(owner) + more > self._quota.bytes:
            what = f"this client's jobs take {self._used(owner) / 1e9:.2f} GB, {self._quota.bytes / 1e9:g} GB are allowed"
            raise PortraitDiffusionError("quota-exceeded", what, "Delete finished jobs that are not needed any more", retryable=True)

    def _used(self, owner: str) -> int:
        """Return the bytes of an owner's jobs; an ended job is measured once."""
        total = 0
        for record in self.store.all_of(owner):
            job, size = record.info.id, self._sizes.get(record.info.id)
            if size is None:
                size = self._data.job(job).size()
                if record.info.done:
                    self._sizes[job] = size
            total += size
        return total

    def _same_submission(self, owner: str, earlier: Record, info: p.JobInfo) -> p.JobInfo:
        same = ("settings", "photo_sha256", "parent", "start")
        if earlier.owner != owner or any(getattr(earlier.info, name) != getattr(info, name) for name in same):
            raise PortraitDiffusionError("job-id-taken", f"the id {info.id} belongs to another job", "Submit with a new id")
        return self._as_it_is(earlier)

    def _photo(self, message: p.JobSubmit, parent: Record | None) -> bytes:
        if message.photo is None or message.start is not None:
            if parent is None:
                raise PortraitDiffusionError("photo-missing", "the submission has no photo", "Send a photo, or name the job that has it")
            return self._data.job(parent.info.id).photo.read_bytes()
        if not message.photo:
            raise PortraitDiffusionError("image-empty", "the photo is empty (0 bytes)", "Copy or download the photo again")
        if len(message.photo) > p.MAX_PHOTO_BYTES:
            size, limit = len(message.photo) / 1e6, p.MAX_PHOTO_BYTES // 10**6
            raise PortraitDiffusionError("photo-too-large", f"the photo has {size:.0f} MB, the limit is {limit} MB", "Reduce it")
        return message.photo

    def get(self, owner: str, job: str) -> p.JobInfo:
        """Return a job of its owner."""
        return self._as_it_is(self._own(owner, job))

    def list(self, owner: str, limit: int, offset: int) -> tuple[tuple[p.JobInfo, ...], int]:
        """Return some of an owner's jobs, newest first, and how many there are."""
        records, total = self.store.of_owner(owner, max(1, min(limit, 200)), max(0, offset))
        return tuple(self._as_it_is(record) for record in records), total

    def cancel(self, owner: str, job: str) -> p.JobInfo:
        """Cancel a job: at once if it waits; a running one becomes "cancelling" until its worker has stopped."""
        record = self._own(owner, job)
        if record.info.state == "queued":
            record = self._change(job, "cancelled", finished=time.time())
        elif record.info.state == "running":
            record = self._change(job, "cancelling")
        return self._as_it_is(record)

    def resume(self, owner: str, job: str) -> p.JobInfo:
        """Queue a failed or cancelled job again; one that waits or runs stays as it is."""
        record = self._own(owner, job)
        if record.info.state in ("failed", "cancelled"):
            self._sizes.pop(job, None)
            record = self._change(job, "queued", started=None, finished=None, error=None)
        elif record.info.state == "completed":
            raise PortraitDiffusionError("job-finished", f"the job {job} is completed", "Submit a new job instead")
        return self._as_it_is(record)

    def delete(self, owner: str, job: str) -> None:
        """Delete a job that has ended; raises PortraitDiffusionError ``job-running``."""
        record = self._own(owner, job)
        if not record.info.done:
            raise PortraitDiffusionError("job-running", f"the job {job} is {record.info.state}", "Cancel it first")
        self.store.remove(job)
        self._data.job(job).remove()
        log.info("job %s deleted", job, extra={"job": job, "client": owner})

    def chunk(self, owner: str, message: p.JobResult) -> bytes:
        """Return a piece of a result file."""
        record = self._own(owner, message.job)
        if record.info.state != "completed":
            raise PortraitDiffusionError("job-not-finished", f"the job {message.job} is {record.info.state}", "Wait until it is completed")
        if message.file not in {file.name for file in record.info.files}:
            raise PortraitDiffusionError("file-not-found", f"the job {message.job} has no file {message.file!r}", "See its list of files")
        if not 0 <= message.length <= p.MAX_CHUNK_BYTES or message.offset < 0:
            raise PortraitDiffusionError("chunk-invalid", f"a piece has 0 to {p.MAX_CHUNK_BYTES} bytes", "Ask for smaller pieces")
        with (self._data.job(message.job).result / message.file).open("rb") as stream:
            stream.seek(message.offset)
            return stream.read(message.length)

    # What workers report

    def next_job(self) -> Record | None:
        """Return the job that has waited longest."""
        return self.store.oldest("queued")

    def start(self, record: Record) -> b.RunJob:
        """Bring a waiting job into the state running and return the order for its worker."""
        info = self._change(record.info.id, "running", started=time.time(), stage="", error=None).info
        self._estimate.start(info.id, str(info.settings.get("preset")), stages.plan(from_dict(info.settings), info.start is not None))
        return b.RunJob(info.id, str(self._data.job(info.id).path), info.settings, info.photo_name, info.start)

    def progress(self, update: b.Update) -> None:
        """Note a worker's report and pass it on."""
        record = self._find(update.job)
        if record is None or record.info.done:
            return
        if record.info.stage != update.stage:
            self.store.note_stage(update.job, update.stage)
            self._tally.stage(update.job, update.stage)
        before = self._progress.get(update.job)
        eta = self._estimate.left(update.job, update.stage, update.step, update.steps)
        sequence = before.sequence + 1 if before else 1
        made = p.JobProgress(update.job, sequence, update.stage, update.step, update.steps, eta, update.metrics, update.preview)
        self._progress[update.job] = replace(made, preview=None)
        self._notify(record.owner, made)

    def finished(self, message: b.Finished) -> None:
        """Complete a job; of its finished stages those stay that a re-texture starts from."""
        self._end(message.job, "completed", files=message.files, warnings=message.warnings)
        record = self._find(message.job)
        if record is not None and record.info.state == "completed":
            shaping = [stage for stage in record.info.settings.get("stages", ()) if stage in stages.SHAPING]
            self._data.job(message.job).keep_only({"portrait", *shaping[-1:], "mesh"})

    def stopped(self, job: str) -> None:
        """A job has noticed that it was cancelled."""
        record = self._find(job)
        if record is not None and record.info.state == "running":
            self._change(job, "cancelling")  # a worker never stops by itself; a job must not run for ever without one
        self._end(job, "cancelled")

    def failed(self, job: str, error: p.ErrorInfo) -> None:
        """A job can't be done."""
        self._end(job, "failed", error=error)

    def died(self, job: str, how: str) -> None:
        """A job's worker is gone: cancelled if it was being cancelled, otherwise failed; either may be resumed."""
        record = self._find(job)
        if record is not None and record.info.state == "cancelling":
            self._end(job, "cancelled")
            return
        hint = "Resume it, it goes on after its last finished stage; if it happens again, try smaller settings and see the server's log"
        what = f"the process that computed this job is gone ({how})"
        self._end(job, "failed", error=p.ErrorInfo("worker-died", what, hint, retryable=True))

    def lost(self, job: str, how: str) -> None:
        """A job's worker on another machine, or one that hadn't begun, is gone: it waits for the next, unless interrupted too often."""
        record = self._find(job)
        if record is None or record.info.state != "running" or record.interruptions >= MAX_INTERRUPTIONS:
            self.died(job, how)
            return
        log.warning("job %s lost its worker (%s) and waits for another", job, how, extra={"job": job})
        self._progress.pop(job, None)
        self._estimate.finish(job, False)
        self._tally.ended(job, "queued")
        self._change(job, "queued", started=None)

    def _end(self, job: str, state: p.JobState, **changes: Any) -> None:
        self._progress.pop(job, None)
        self._estimate.finish(job, state == "completed")
        self._tally.ended(job, state)
        try:
            self._change(job, state, finished=time.time(), **changes)
        except (ForbiddenTransition, KeyError) as error:
            log.error("a worker reported the end of a job: %s", error)

    def _change(self, job: str, state: p.JobState, **changes: Any) -> Record:
        record = self.store.transition(job, state, **changes)
        error = record.info.error
        fields = {"job": job, "state": state, "client": record.owner, **({"code": error.code} if error else {})}
        log.info("job %s %s%s", job, state, f" ({error.code}: {error.message})\n{error.log}".rstrip() if error else "", extra=fields)
        self._notify(record.owner, p.JobStateChanged(record.info))
        return record

    def _find(self, job: str) -> Record | None:
        try:
            return self.store.find(job)
        except KeyError:
            return None

    def _own(self, owner: str, job: str) -> Record:
        """Return a job of `owner`; nobody learns whether another one's job exists."""
        record = self._find(job)
        if record is None or record.owner != owner:
            raise PortraitDiffusionError("job-not-found", f"there is no job {job[:40]!r} of yours", "See the list of jobs")
        return record

    def _as_it_is(self, record: Record) -> p.JobInfo:
        now = self._progress.get(record.info.id)
        if now is None or record.info.done:
            return record.info
        return replace(record.info, stage=now.stage, step=now.step, steps=now.steps, eta=now.eta)


def _checked_id(job: str) -> str:
    if not p.JOB_ID.fullmatch(job):
        raise PortraitDiffusionError("job-id-invalid", f"{job[:40]!r} is no job id", "Use 32 hexadecimal digits")
    return job


def _clean(text: str) -> str:
    return "".join(c for c in text if c.isprintable()).strip()[: p.MAX_NAME_LENGTH]


def _keeping_geometry(settings: Settings, start: str, parent: Record | None) -> Settings:
    """Return the settings of a re-texture job: what shaped the geometry is the parent's."""
    if start not in STARTS:
        raise PortraitDiffusionError("start-invalid", f"a job can't start at {start[:40]!r}", "Use texture, or leave it out")
    if parent is None:
        raise PortraitDiffusionError("parent-missing", "a re-texture job needs the job whose geometry it keeps", "Name a finished job")
    if parent.info.state != "completed":
        raise PortraitDiffusionError("job-not-finished", f"the job {parent.info.id} is {parent.info.state}", "Wait until it is completed")
    return stages.with_geometry_of(settings, from_dict(parent.info.settings))
