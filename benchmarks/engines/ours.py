"""The server's own kernels; the second argument is a folder for the machine code.

`NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES` in the environment say for which CPU.
"""

import importlib.metadata
import os
import sys
from pathlib import Path

from benchmarks.engines.drill import drill
from service.engine import Engine
from service.ensemble.layouts import pack
from service.machine_code import load_code

if __name__ == "__main__":
    folder, cache = Path(sys.argv[1]), Path(sys.argv[2])
    cache.mkdir(parents=True, exist_ok=True)
    engine = Engine(pack((folder / "model.ubj").read_bytes()), load_code(cache))
    engine.measure()
    version = importlib.metadata.version("numba")
    drill(engine.predict, folder, f"numba {version}", f"compiled for {os.environ.get('NUMBA_CPU_NAME', 'this CPU')}")
