"""The engine of a worker process that has its work done on a node: it sends jobs there, passes on reports, brings home what was made."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from portrait_backend import __version__
from portrait_backend.cluster import link
from portrait_backend.cluster.options import RayOptions, mismatched, unreachable
from portrait_backend.cluster.parcels import News, NewStages, Order, read_files, write_files
from portrait_backend.job_folder import job_folder
from portrait_backend.server import backstage as b
from portrait_backend.server.executor import PIPELINE, Cancelled, Executor, JobFailed, Reporter, WorkerLost
from portrait_backend.server.folders import JobFolder
from portrait_shared.errors import PortraitDiffusionError

SILENCE_SECONDS = 120.0
"""A node that answers nothing for so long is taken for dead; Ray itself notices most deaths within seconds."""
ANSWERS = 4
"""Calls that an actor answers at the same time: the job, news, a cancellation."""


@dataclass(frozen=True)
class RayEngines:
    """Makes the engines of the worker processes; engine: "module:name" of what computes on the nodes."""

    options: RayOptions
    engine: str = PIPELINE

    def __call__(self, device: str) -> RayEngine:
        """Join the cluster and return the engine; device: auto, cpu or cuda, with a slot's number after a slash."""
        return RayEngine(self.options, self.engine, device.partition("/")[0])


def ray_executor(options: RayOptions, slots: int, device: str = "auto", engine: str = PIPELINE) -> Executor:
    """Return the executor of a server whose jobs are done on a cluster, `slots` at the same time."""
    names = tuple(f"{device}/{number}" for number in range(1, slots + 1))
    return Executor(names, RayEngines(options, engine), elsewhere=True)


class RayEngine:
    """One actor at a time, started where the cluster has room for it; when it is gone, the next one is started where there is room then."""

    def __init__(self, options: RayOptions, engine: str, device: str) -> None:
        self._options, self._engine, self._device = options, engine, device
        self._ray = link.join(options)
        self._actor: Any = None
        self._version = ""

    def describe(self) -> b.DeviceInfo:
        """Return the node's device as it is now; waits until the cluster has room for the actor.

        Raises PortraitDiffusionError ray-unreachable, ray-mismatched, and what the node's own engine raises.
        """
        fresh = self._actor is None
        try:
            frames, version, node = self._ray.get(self._worker().describe.remote())
        except Exception as error:  # Ray's own errors have many types
            self.drop()
            if not fresh:  # it died while there was nothing to do
                return self.describe()
            raise self._trouble(error) from error
        if version != __version__:
            self.drop()
            raise mismatched(f"a node of the cluster has portrait-diffusion {version}, this machine {__version__}")
        message = b.from_frames(frames)
        if isinstance(message, b.Failed):
            self.drop()
            raise message.error.exception()
        assert isinstance(message, b.Ready)
        return replace(message.device, name=f"{message.device.name}, Ray node {node}")

    def warm_up(self) -> None:
        """The actor has warmed up by itself."""

    def run(self, job: b.RunJob, reporter: Reporter) -> tuple[str, ...]:
        """Have a job done on the node and put its result into the job's folder; its finished stages come home while it runs."""
        folder = JobFolder(Path(job.folder))
        geometry = read_files(folder.geometry) if folder.geometry.is_dir() else None
        order = Order(job.job, job.settings, job.source, job.start, folder.photo.read_bytes(), stages_of(folder.checkpoints), geometry)
        end, result = self.do(order, reporter, folder.checkpoints)
        shutil.rmtree(folder.result, ignore_errors=True)
        with job_folder(folder.result) as work:
            write_files(result, work)
        return end.warnings

    def do(self, order: Order, reporter: Reporter, checkpoints: Path) -> tuple[b.Finished, dict[str, bytes]]:
        """Have an order done; finished stages go to the folder `checkpoints`. Returns its end and the files of its result.

        Raises Cancelled, WorkerLost, JobFailed, PortraitDiffusionError.
        """
        try:
            last = self._follow(order, reporter, checkpoints)
        except self._ray.exceptions.RayError as error:
            self.drop()
            raise WorkerLost(_how(error)) from error
        end = b.from_frames(last.messages[-1])
        if isinstance(end, b.Finished):
            return end, dict(last.result or {})
        if isinstance(end, b.Stopped):
            raise Cancelled
        assert isinstance(end, b.Failed)
        if end.worn:
            self.drop()
        raise JobFailed(end.error)

    def _follow(self, order: Order, reporter: Reporter, checkpoints: Path) -> News:
        """Pass on the news of an order until it is done; returns the last ones."""
        ray, actor = self._ray, self._worker()
        done, question, asked, told = actor.run.remote(order), actor.news.remote(), time.monotonic(), False
        while True:
            if not told and reporter.cancelled():
                actor.cancel.remote(order.job)
                told = True
            ready, _ = ray.wait([done, question], num_returns=1, timeout=0.5)
            if question in ready:
                self._pass_on(ray.get(question), reporter, checkpoints)
                question, asked = actor.news.remote(), time.monotonic()
            if done in ready:
                last: News = ray.get(done)
                self._pass_on(last, reporter, checkpoints)
                return last
            if time.monotonic() - asked > SILENCE_SECONDS:
                self.drop()
                raise WorkerLost(f"its node has not answered for {SILENCE_SECONDS:.0f} s")

    @staticmethod
    def _pass_on(news: News, reporter: Reporter, checkpoints: Path) -> None:
        if news.checkpoints:
            checkpoints.mkdir(exist_ok=True)
            write_files(news.checkpoints, checkpoints)
        for message in map(b.from_frames, news.messages):
            if isinstance(message, b.Update):
                reporter.report(message.stage, message.step, message.steps, message.metrics, message.preview)

    def _worker(self) -> Any:
        if self._actor is None:
            from portrait_backend.cluster.node import HeadWorker

            cpus, gpus = link.share(self._options, link.facts(self._ray), self._device)
            made = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_concurrency=ANSWERS)(HeadWorker)
            self._actor = made.remote(self._engine, self._device)
        return self._actor

    def drop(self) -> None:
        """Give the actor back to the cluster, whatever it does."""
        if self._actor is not None:
            with suppress(Exception):  # it is gone already, or the cluster is
                self._ray.kill(self._actor)
            self._actor = None

    def _trouble(self, error: Exception) -> PortraitDiffusionError:
        text = str(error)
        if "No module named" in text or "Can't get attribute" in text:
            line = next((line for line in reversed(text.splitlines()) if "Error" in line), text.splitlines()[-1])
            return mismatched(f"a node of the cluster can't run this version ({line.strip()[:200]})")
        return unreachable(self._options.address, _how(error))


def stages_of(folder: Path) -> dict[str, bytes]:
    """Return the finished stages in a checkpoint folder; what an unfinished one keeps stays here."""
    return NewStages(folder, ()).take()


def _how(error: Exception) -> str:
    """Return one line about what Ray says."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300].rstrip('. ')}"
