import subprocess
import sys
from importlib.util import find_spec

import pytest

CODE = """
import sys
import beamclip.openclip
print("wandb" in sys.modules)
import wandb
print(wandb.__name__)
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_is_left_to_those_who_want_it():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "wandb"]
