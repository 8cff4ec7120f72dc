"""Options of a distillation that contradict each other are refused before anything is loaded."""

from typing import Any

import pytest

from beamclip.commands.distill_data import check_options
from beamclip.commands.options import DistillConfig
from beamclip.errors import InputError
from beamclip.losses.config import CsmConfig


def given(**options: Any) -> DistillConfig:
    return DistillConfig(data=("shards",), teacher="open_clip:ViT-B-16/openai", **options)


def test_each_further_teacher_has_a_temperature_or_none_has() -> None:
    two = {"more_teachers": ("one", "two")}
    check_options(given(**two))
    check_options(given(**two, csm=CsmConfig(more_tau_teachers=(0.01, 0.04))))
    with pytest.raises(InputError, match=r"--more-tau-teachers 0.01: 1 temperature for 2 further teachers"):
        check_options(given(**two, csm=CsmConfig(more_tau_teachers=(0.01,))))
    with pytest.raises(InputError, match="1 temperature for 0 further teachers"):
        check_options(given(csm=CsmConfig(more_tau_teachers=(0.01,))))
