"""Reading and naming weights."""

from pathlib import Path

import pytest
import torch
from torch import nn

from beamclip.errors import InputError
from beamclip.models.weights import read_state_dict, weights_sha256


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_the_hash_is_that_of_the_values_whatever_their_memory_format() -> None:
    packed = network().to(memory_format=torch.channels_last)
    assert weights_sha256(network(), {"a": 1, "b": 2}) == weights_sha256(packed, {"b": 2, "a": 1})


def test_the_hash_changes_with_one_weight_one_statistic_the_type_and_the_config() -> None:
    weight, statistic = network(), network()
    with torch.no_grad():
        weight[0].weight[0, 0, 0, 0] += 1e-6
        statistic[1].running_mean[0] += 1e-6
    hashes = {
        weights_sha256(network(), {"size": 1}),
        weights_sha256(network(), {"size": 2}),
        weights_sha256(weight, {"size": 1}),
        weights_sha256(statistic, {"size": 1}),
        weights_sha256(network().bfloat16(), {"size": 1}),
    }
    assert len(hashes) == 5


def test_only_tensors_are_read_and_a_ddp_prefix_is_dropped(tmp_path: Path) -> None:
    torch.save({"module.weight": torch.ones(2), "module.steps": 3}, tmp_path / "a.pt")
    state = read_state_dict(tmp_path / "a.pt")
    assert list(state) == ["weight"]


@pytest.mark.parametrize("content", [[1, 2], {}, 3])
def test_a_torch_file_that_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt: cannot be read as a file of weights"):
        read_state_dict(tmp_path / "a.pt")
