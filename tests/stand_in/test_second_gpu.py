"""The second of two GPUs: in a process of its own, as the driver counts its GPUs once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from pathlib import Path
import numpy as np
from deploykit.core.environment import gpus
from deploykit.core.errors import UsageError
from tests.device_arrays import ByDlpack
from tests.fakes.runtime_fake import Script
from tests.runner_scenarios import images
from tests.stand_in.benches import fake_bench

bench = fake_bench(Script(), Path(sys.argv[1]))
with bench.runner(gpu_index=1) as runner:
    batch = images(2)
    bench.oracle()(batch, runner.run({"x": batch}))
    on_gpu = runner.run_on_device({"x": batch})["y"]
    assert len(gpus()) == 2
    assert on_gpu.__dlpack_device__() == (2, 1)
    try:
        runner.run({"x": ByDlpack(batch)})
    except UsageError as error:
        print(error)
"""


def test_an_engine_runs_on_the_second_gpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path],
        env={**os.environ, "NULLCUDA_DEVICES": "2", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "input 'x' lies on GPU 0, the engine runs on GPU 1\n"
        'copy it there, or load the engine with device="cuda:0"\n'
    )
