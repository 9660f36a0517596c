"""Run a server with another engine, in a process of its own: `run_server.py ENGINE DATA [bind [devices [parent pid [idle minutes]]]]`."""

import math
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    from portrait_backend.cli.console import terminable
    from portrait_backend.server.serve import ServeOptions, serve
    from portrait_shared.errors import PortraitDiffusionError

    engine, data, bind, devices, parent, idle = [*sys.argv[1:], *["tcp://127.0.0.1:*", "cpu", "", ""][len(sys.argv) - 3 :]]
    options = ServeOptions(
        data=Path(data),
        bind=bind,
        devices=tuple(devices.split(",")),
        parent=int(parent) if parent else None,
        idle_minutes=float(idle) if idle else math.inf,
        engine=engine,
    )
    try:
        with terminable():
            serve(options)
    except PortraitDiffusionError as error:
        sys.exit(str(error))
