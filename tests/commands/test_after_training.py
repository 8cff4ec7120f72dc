"""A trained model outlives whatever fails after its training."""

from dataclasses import replace
from pathlib import Path

import pytest

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.after_training import SCORING, AfterTraining, UnscoredError
from beamclip.commands.command_line import run_command
from beamclip.commands.distill import distill
from beamclip.commands.options import DistillConfig, ScoringConfig
from beamclip.data.config import StreamConfig
from beamclip.errors import InputError
from beamclip.models.clip import load_clip
from beamclip.models.config import StudentConfig
from beamclip.summary import read_summary
from beamclip.training.config import OptimConfig

RUN = Path("runs/a b")
CONFIG = DistillConfig(classes=Path("classes.yaml"), scoring=ScoringConfig(eval_data="labelled"))


def fail(error: BaseException) -> None:
    raise error


def unscorable(tmp_path: Path) -> Path:
    """Classes of which the labelled images have none, which shows when they are scored."""
    (tmp_path / "other.txt").write_text("cat\ndog\n")
    return tmp_path / "other.txt"


@pytest.mark.slow
def test_a_model_whose_scoring_fails_is_there_and_the_command_says_how_to_score_it(
    teacher, corpus, tmp_path, capsys
):
    out = tmp_path / "run"
    config = DistillConfig(
        data=(str(corpus.train),),
        teacher=str(teacher[0]),
        classes=unscorable(tmp_path),
        out=out,
        student=StudentConfig(student="resnet10t"),
        stream=StreamConfig(batch_size=32),
        optim=OptimConfig(steps=1),
        scoring=ScoringConfig(eval_data=str(corpus.test)),
        workers=WorkersConfig(num_workers=0),
    )
    assert run_command(DistillConfig, lambda _: distill(config), "", argv=[]) == 1
    message = capsys.readouterr().err
    assert "label not in the class list" in message
    assert f"The trained model is in {out}/model. Score it by: beamclip evaluate" in message
    assert f"--model {out} --data {corpus.test} --classes {tmp_path}/other.txt" in message
    assert load_clip(str(out)).image_size == 32
    assert "None were measured." in (out / "model" / "README.md").read_text()
    summary = read_summary(out)
    assert summary.status == "failed"
    assert summary.notes[0].startswith("scoring: ")
    assert summary.images == 32


def test_what_comes_after_a_failure_is_still_done_and_all_failures_are_named():
    after = AfterTraining()
    assert after.attempt("curves", lambda: fail(OSError("no space left"))) is None
    assert after.attempt(SCORING, lambda: fail(InputError("labelled: no label."))) is None
    assert after.attempt("pictures", lambda: 3) == 3
    assert after.status == "failed"
    with pytest.raises(UnscoredError) as error:
        after.raise_failure(CONFIG, RUN)
    assert str(error.value) == (
        "curves: OSError: no space left. scoring: labelled: no label. "
        "The trained model is in runs/a b/model. "
        "Score it by: beamclip evaluate --model 'runs/a b' --data labelled --classes classes.yaml"
    )


@pytest.mark.parametrize("ended", ["curves", SCORING])
def test_ctrl_c_ends_all_that_comes_after_training_and_keeps_the_model(ended):
    after = AfterTraining()
    after.attempt(ended, lambda: fail(KeyboardInterrupt()))
    after.attempt(SCORING, lambda: fail(AssertionError("not reached")))
    assert after.attempt("pictures", lambda: fail(AssertionError("not reached"))) is None
    assert after.status == "interrupted"
    with pytest.raises(KeyboardInterrupt, match=r"is in runs/a b/model\. Score it by"):
        after.raise_failure(CONFIG, RUN)


def test_options_of_the_scores_are_said_again():
    after = AfterTraining()
    after.attempt(SCORING, lambda: fail(InputError("no.")))
    prompts = replace(CONFIG.prompts, templates=("name", "photo"))
    scoring = ScoringConfig(eval_data="labelled", label_column="species")
    with pytest.raises(UnscoredError, match=r"--label-column species --templates name photo$"):
        after.raise_failure(replace(CONFIG, prompts=prompts, scoring=scoring), RUN)


def test_a_failure_of_a_picture_does_not_ask_for_scores():
    after = AfterTraining()
    after.attempt("pictures", lambda: fail(OSError("no space left")))
    with pytest.raises(UnscoredError, match=r"is in runs/a b/model\.$"):
        after.raise_failure(CONFIG, RUN)
