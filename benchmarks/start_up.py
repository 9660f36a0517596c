"""How long until something happens: --help, doctor, a warm server's next job, the extension in Blender. Wall and processor seconds.

Each is run in processes of its own; the server and Blender are the real ones, and are left out where --only doesn't name them.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
PHOTO = ROOT / "examples/astronaut.png"
WARM_UP_SECONDS = 120.0
REGISTER = """
import os, sys, time
archive, folder = sys.argv[1:]
os.environ["BLENDER_USER_RESOURCES"] = folder
import bpy, addon_utils
if archive:
    bpy.ops.extensions.package_install_files(repo="user_default", filepath=archive, enable_on_install=False)
start = time.perf_counter(), time.process_time()
bpy.ops.preferences.addon_enable(module="bl_ext.user_default.portrait_diffusion")
end = time.perf_counter(), time.process_time()
assert "bl_ext.user_default.portrait_diffusion" in bpy.context.preferences.addons
bpy.ops.preferences.addon_disable(module="bl_ext.user_default.portrait_diffusion")
print("SECONDS", end[0] - start[0], end[1] - start[1])
"""

Times = tuple[float, float]
"""Wall seconds and processor seconds."""


def command(*arguments: str) -> Times:
    """Run `portrait-diffusion` with arguments."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "portrait_backend", *arguments], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def next_job() -> Times:
    """Return the seconds from submitting a job to a warm, idle server until its first stage reports (twice: no processor time)."""
    from portrait_shared.client import Client
    from portrait_shared.protocol import JobProgress

    with tempfile.TemporaryDirectory() as folder:
        serve = [sys.executable, "-m", "portrait_backend", "serve", "--data", folder]
        process = subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            connection, end = Path(folder) / "connection.json", time.monotonic() + WARM_UP_SECONDS
            while not connection.exists() and time.monotonic() < end:
                time.sleep(0.05)
            with Client.connect(connection, timeout=30) as client:
                while client.status().device is None and time.monotonic() < end:
                    time.sleep(0.1)
                time.sleep(10)  # the workers say that they are there before they have loaded everything
                start = time.perf_counter()
                job = client.submit(PHOTO, {"preset": "draft"})
                for event in client.follow(job.id, 60):
                    if isinstance(event, JobProgress):
                        seconds = time.perf_counter() - start
                        client.cancel(job.id)
                        break
                return seconds, seconds
        finally:
            process.terminate()
            process.wait(30)


def registration() -> Times:
    """Return the seconds in which a fresh Blender enables the installed extension, as at every start but the first."""
    import build_addon

    with tempfile.TemporaryDirectory() as folder:
        (archive,) = build_addon.build(build_addon.chosen_platforms(["current"]), Path(folder) / "dist", None)
        for given in (str(archive), ""):  # the first time Blender unpacks the wheels too
            run = [sys.executable, "-c", REGISTER, given, str(Path(folder) / "user")]
            done = subprocess.run(run, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    line = next(line for line in done.stdout.splitlines() if line.startswith("SECONDS"))
    return float(line.split()[1]), float(line.split()[2])


CASES: dict[str, tuple[Callable[[], Times], float, int]] = {
    "help": (lambda: command("--help"), 0.3, 5),
    "doctor": (lambda: command("doctor"), 3.0, 3),
    "server": (next_job, 1.0, 1),
    "blender": (registration, 0.2, 1),
}
"""What, its aim in seconds, how often."""


def main() -> int:
    """Print a line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    for name in parser.parse_args().only:
        call, aim, repeats = CASES[name]
        wall, own = (median(values) for values in zip(*(call() for _ in range(repeats)), strict=True))
        print(f"{name:10s} {wall:6.2f} s, processor {own:6.2f} s; aim {aim} s: {'met' if wall < aim else 'MISSED'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
