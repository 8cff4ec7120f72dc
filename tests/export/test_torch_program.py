"""Programs of torch.export, run by plain torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from beamclip.export.folder import check_replaceable
from beamclip.export.formats import LAYOUTS, Exported, write_torch

PROGRAM = """
import sys
for name in ("beamclip", "open_clip", "timm"):
    sys.modules[name] = None  # importing it is an ImportError
import torch
program = torch.export.load(sys.argv[1]).module()
torch.save(program(torch.load(sys.argv[2])), sys.argv[3])
"""


@pytest.mark.slow
def test_plain_torch_classifies_pixels(exported: Exported, tmp_path: Path) -> None:
    parities = write_torch(exported, tmp_path / "torch")
    assert {name: parity.what for name, parity in parities.items()} == {
        "image_encoder": "embeddings",
        "classifier": "probabilities",
    }
    check_replaceable(tmp_path / "torch", LAYOUTS["torch"])
    for file in (tmp_path / "torch").glob("*.pt2"):  # the example that a file holds is no image of the user
        [example], _ = torch.export.load(file).example_inputs
        assert not example.any()
    torch.save(exported.pixels[:3], tmp_path / "pixels.pt")
    places = [tmp_path / "torch" / "classifier.pt2", tmp_path / "pixels.pt", tmp_path / "out.pt"]
    subprocess.run([sys.executable, "-c", PROGRAM, *map(str, places)], check=True, capture_output=True)
    found = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(found, exported.probabilities[:3], atol=1e-5, rtol=0)
