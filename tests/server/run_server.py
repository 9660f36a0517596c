"""Run a server with another engine, in a process of its own: `run_server.py ENGINE DATA [bind [devices [parent pid [idle minutes]]]]`.

CLUSTER in the environment, the JSON of `RayOptions`, has the jobs done there; devices is then the number of jobs at the same time.
METRICS is the port of the metrics page.
CLOCK in the environment names a file with the seconds by which its wall clock is off; the file may change at any time.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
    if "CLOCK" in os.environ:
        offset, true_time = Path(os.environ["CLOCK"]), time.time
        time.time = lambda: true_time() + float(offset.read_text())
    from portrait_backend.cli.console import terminable
    from portrait_backend.server.executor import Executor
    from portrait_backend.server.metrics import MetricsOptions
    from portrait_backend.server.serve import ServeOptions, serve
    from portrait_shared.errors import PortraitDiffusionError

    engine, data, bind, devices, parent, idle = [*sys.argv[1:], *["tcp://127.0.0.1:*", "cpu", "", ""][len(sys.argv) - 3 :]]
    names = tuple(devices.split(","))
    executor = Executor(names, engine)
    if "CLUSTER" in os.environ:
        from portrait_backend.cluster.engine import ray_executor
        from portrait_backend.cluster.options import RayOptions

        executor = ray_executor(RayOptions(**json.loads(os.environ["CLUSTER"])), int(devices), engine=engine)
    options = ServeOptions(
        data=Path(data),
        bind=bind,
        executor=executor,
        metrics=MetricsOptions(int(os.environ["METRICS"])) if "METRICS" in os.environ else None,
        parent=int(parent) if parent else None,
        idle_minutes=float(idle) if idle else math.inf,
    )
    try:
        with terminable():
            serve(options)
    except PortraitDiffusionError as error:
        sys.exit(str(error))
