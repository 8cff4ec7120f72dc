"""Tokenizers other than CLIP's: a teacher's goes with its students and into their exports."""

import json
from pathlib import Path

import pytest
import torch

from beamclip.errors import InputError
from beamclip.export.open_clip_dir import write_open_clip_dir
from beamclip.models.clip import CONFIG_FILE, load_clip, new_clip
from beamclip.models.student import StudentConfig, build_student

WORDS = ["<pad>", "</s>", "<unk>", "crane", "a", "of", "photo", "bird"]


def directory_with(tokenizer: str, folder: Path) -> Path:
    """Write a model whose config names a tokenizer of transformers."""
    directory = write_open_clip_dir(new_clip("tiny-vit", seed=0), folder)
    config = json.loads((directory / CONFIG_FILE).read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = tokenizer
    (directory / CONFIG_FILE).write_text(json.dumps(config))
    return directory


def test_a_student_and_its_export_have_the_tokenizer_of_the_teacher(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    directory = directory_with("someone/their-words", tmp_path / "teacher")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(directory)
    teacher = load_clip(str(directory))
    student = build_student(StudentConfig(student="test_resnet"), teacher, seed=0)
    export = load_clip(str(write_open_clip_dir(student, tmp_path / "student")))
    length = teacher.model_cfg["text_cfg"]["context_length"]
    told = torch.tensor([[4, 6, 5, 4, 3, 1] + [0] * (length - 6), [2, 1] + [0] * (length - 2)])
    for each in (teacher, student, export):
        assert torch.equal(each.tokenizer(["a photo of a crane", "whale"]), told)


def test_a_tokenizer_that_cannot_be_loaded_is_one_line_that_says_how_to_get_it(tmp_path: Path) -> None:
    directory = directory_with("someone/their-words", tmp_path / "teacher")
    with pytest.raises(InputError, match=r"its tokenizer cannot be loaded .*beamclip\[transformers\]"):
        load_clip(str(directory))
