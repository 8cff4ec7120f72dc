"""Whole trainings by several workers equal those of one: the losses of each step, to rounding."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

WORKER = Path(__file__).with_name("whole_run_worker.py")


def run(world_size: int, config: Path, shards: Path, folder: Path) -> dict[str, list[float]]:
    folder.mkdir()
    command = [sys.executable, str(WORKER)]
    workers = [
        subprocess.Popen([*command, str(rank), str(world_size), str(config), str(shards), str(folder)])
        for rank in range(world_size)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0] * world_size
    return json.loads((folder / "losses.json").read_text())


@pytest.mark.slow
def test_losses_do_not_depend_on_the_number_of_workers(
    tiny_config: Path, damaged_shards: Path, tmp_path: Path
) -> None:
    one, two = (run(count, tiny_config, damaged_shards, tmp_path / str(count)) for count in (1, 2))
    for name, losses in one.items():
        rtol, steps = (1e-9, 50) if name.endswith("float64") else (1e-5, 10)
        assert len(losses) == steps
        assert losses[-1] != losses[0]
        np.testing.assert_allclose(two[name], losses, rtol=rtol, err_msg=name)
