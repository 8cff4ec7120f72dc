"""Options of a distillation that contradict each other are refused before anything is loaded."""

from typing import Any

import pytest

from beamclip.commands.distill_data import check_options, check_vision_teachers
from beamclip.commands.options import DistillConfig
from beamclip.errors import InputError
from beamclip.losses.config import BatchTermsConfig, CsmConfig, VisionConfig


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


def test_vision_teachers_and_the_weights_of_their_terms_go_together() -> None:
    teachers, weights = {"vision_teachers": ("timm:test_vit",)}, VisionConfig(vision_feature_weight=0.5)
    check_options(given(**teachers, vision=weights))
    check_vision_teachers(given(**teachers, vision=weights))
    with pytest.raises(InputError, match=r"--vision-teachers timm:test_vit: nothing is learned .* above 0"):
        check_vision_teachers(given(**teachers))
    with pytest.raises(InputError, match=r"Give --vision-teachers, or leave both weights at 0"):
        check_options(given(vision=weights))


def test_something_must_teach_the_embeddings() -> None:
    off = CsmConfig(csm_weight=0.0)
    check_options(given(csm=off, terms=BatchTermsConfig(relation_weight=1.0)))
    taught = {"vision_teachers": ("timm:test_vit",), "vision": VisionConfig(vision_relation_weight=1.0)}
    for options in ({}, taught):
        with pytest.raises(InputError, match="embeddings, which would learn nothing"):
            check_options(given(csm=off, **options))
