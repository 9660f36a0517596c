"""What a worker computes with: the pipeline, its reports made fit for the protocol."""

from __future__ import annotations

import importlib
import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from portrait_backend import context, devices, doctor, pipeline
from portrait_backend.server.backstage import DeviceInfo, RunJob
from portrait_backend.server.executor import Cancelled, Reporter
from portrait_backend.server.folders import JobFolder
from portrait_shared.settings import from_dict

PREVIEW_SIDES = 256, 512
"""Smaller previews (the fit's are as large as its ray batch) are enlarged, larger ones reduced."""
JPEG_QUALITY = 85
WARM = ("portrait.align", "prior.starter", "mesh.build", "mesh.export", "outputs")


class PipelineEngine:
    """Runs jobs on one device: auto, cpu, cuda or cuda:N (the worker process then sees that GPU only)."""

    def __init__(self, device: str) -> None:
        self.device = devices.choose_device(device.partition(":")[0])

    def describe(self) -> DeviceInfo:
        """Return the device with its memory as it is now."""
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            return DeviceInfo("cuda", torch.cuda.get_device_name(self.device), round(total / 1e6), round(free / 1e6))
        memory = doctor.total_memory_gb()
        name = f"CPU, {torch.get_num_threads()} threads"
        return DeviceInfo("cpu", name, None if memory is None else round(1000 * memory))

    def warm_up(self) -> None:
        """Import the parts that the pipeline imports when it needs them, and read the weights of the prior."""
        for name in WARM:
            importlib.import_module(f"portrait_backend.{name}")
        from portrait_backend.prior.starter import starter_network

        starter_network()

    def run(self, job: RunJob, reporter: Reporter) -> tuple[str, ...]:
        """Run the pipeline in the job's folder; it goes on after the last finished stage that is there."""
        folder = JobFolder(Path(job.folder))

        def on_progress(progress: context.Progress) -> None:
            metrics = {name: value for name, value in progress.metrics.items() if math.isfinite(value)}
            show = progress.preview is not None and reporter.wants_preview()
            preview = jpeg(progress.preview) if show and progress.preview is not None else None
            reporter.report(progress.stage, progress.step, progress.steps, metrics, preview)

        try:
            result = pipeline.generate(
                folder.photo,
                from_dict(job.settings),
                on_progress,
                folder.result,
                reporter.cancelled,
                checkpoints=folder.checkpoints,
                geometry=None if job.start is None else folder.geometry,
                source=job.source or folder.photo.name,
                device=self.device.type,
                shows_previews=reporter.wants_preview,
            )
        except context.Cancelled as cancelled:
            raise Cancelled from cancelled
        return tuple(result.warnings)


def jpeg(image: torch.Tensor) -> bytes:
    """Return an image (H, W, 3) float in [0, 1] as JPEG, its longer side within PREVIEW_SIDES."""
    values = np.ascontiguousarray((image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
    picture = Image.fromarray(values)
    side = max(picture.size)
    wanted = min(max(side, PREVIEW_SIDES[0]), PREVIEW_SIDES[1])
    if wanted != side:
        size = (max(1, round(picture.width * wanted / side)), max(1, round(picture.height * wanted / side)))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
