"""Which options become parameters of a run in MLflow."""

from dataclasses import fields, is_dataclass
from typing import Any

from beamclip.commands.effects import IDLE, IDLE_WITH_CACHE, RECORDS, effective_parameters
from beamclip.commands.main import COMMANDS
from beamclip.commands.options import DistillConfig, EvaluateConfig, PretrainConfig, ScoringConfig
from beamclip.data.config import CaptionConfig
from beamclip.ingest.config import IngestConfig
from beamclip.losses.config import CsmConfig, FeatureConfig
from beamclip.prompts.config import PromptConfig


def test_options_that_another_one_switches_off_are_no_parameters() -> None:
    clip = effective_parameters(PretrainConfig())
    assert not [name for name in clip if name.startswith(("psd_", "caption_"))]
    assert clip["objective"] == "clip"
    psd = effective_parameters(PretrainConfig(objective="psd", captions=CaptionConfig(("tags",))))
    assert (psd["psd_target"], psd["caption_join"]) == ("swap", "sample")
    csm = effective_parameters(DistillConfig())
    assert csm["tau_teacher"] == 0.02
    assert "feature_kind" not in csm
    feature = DistillConfig(csm=CsmConfig(csm_weight=0.0), feature=FeatureConfig(feature_weight=1.0))
    assert "tau_teacher" not in effective_parameters(feature)
    assert effective_parameters(feature)["feature_kind"] == "cosine"


def test_defaults_are_parameters_and_what_holds_nothing_is_not() -> None:
    options = effective_parameters(DistillConfig())
    assert (options["warmup"], options["seed"], options["pretrained"]) == (0.1, 0, False)
    assert not {"steps", "data_weights", "classes", "out", "keep_checkpoints", "run_name"} & {*options}
    assert effective_parameters(IngestConfig())["per_host"] == 64


def test_what_scores_need_is_a_parameter_where_there_are_scores() -> None:
    assert "scoring_batch" not in effective_parameters(DistillConfig())
    scored = effective_parameters(DistillConfig(scoring=ScoringConfig(eval_data="s3://test")))
    assert (scored["eval_data"], scored["label_column"]) == ("s3://test", "label")
    prompts = {item.name for item in fields(PromptConfig)}
    assert not prompts & {*effective_parameters(EvaluateConfig(classes=__file__, tasks=("probe",)))}  # type: ignore[arg-type]
    assert "templates" in effective_parameters(EvaluateConfig(classes=__file__))  # type: ignore[arg-type]
    assert prompts & {*effective_parameters(EvaluateConfig())} == {
        "templates",
        "context_source",
        "anchor_reduce",
    }
    assert "templates" not in effective_parameters(PretrainConfig())
    assert "templates" in effective_parameters(PretrainConfig(scoring=ScoringConfig(eval_data="named")))


def test_with_a_cache_the_options_of_a_running_teacher_are_no_parameters() -> None:
    config = DistillConfig()
    alone = {*effective_parameters(config)} - {*effective_parameters(config, cached=True)}
    assert alone == {"teacher_precision"}


def names(config: Any) -> set[str]:
    found = set[str]()
    for item in fields(config):
        section = item.default_factory
        found |= names(section) if is_dataclass(section) else {item.name}
    return found


def test_the_lists_name_options_that_exist() -> None:
    known = set().union(*(names(command.options) for command in COMMANDS.values()))
    listed = {*RECORDS, *IDLE_WITH_CACHE}.union(*(idle for idle, _ in IDLE))
    assert listed <= known
