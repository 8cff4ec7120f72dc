"""The exported networks against the code that trains and scores."""

import pytest
import torch

from beamclip.evaluation.zeroshot import class_scores
from beamclip.export.formats import Exported
from beamclip.export.networks import ClassHead, ImageEncoder, TextEncoder
from beamclip.models.clip import LoadedClip
from beamclip.models.teacher import Teacher
from beamclip.prompts.anchors import Anchors


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=1)


@pytest.mark.parametrize("owners", [[0, 1, 2, 3], [2, 0, 0, 1, 3, 3, 3]])
def test_probabilities_are_the_soft_maximum_of_the_scores(owners: list[int]) -> None:
    anchors = Anchors(unit(len(owners), 8, seed=0), torch.tensor(owners))
    embeddings, scale = unit(6, 8, seed=1), 25.0
    scores = class_scores(embeddings, anchors, 4, temperature=1 / scale)
    expected = (scores.double() * scale).softmax(dim=1).float()
    torch.testing.assert_close(ClassHead(anchors, 4, scale)(embeddings), expected, atol=1e-6, rtol=1e-5)


def test_the_encoders_give_what_the_teacher_gives(student: LoadedClip, exported: Exported) -> None:
    teacher = Teacher(student)
    images = ImageEncoder(student)(exported.pixels)
    torch.testing.assert_close(images, teacher.encode_image(exported.pixels), atol=1e-6, rtol=0)
    texts = ["an owl", "a kite over the sea"]
    tokens = TextEncoder(student)(student.tokenizer(texts))
    torch.testing.assert_close(tokens, teacher.encode_text(texts), atol=1e-6, rtol=0)


def test_the_model_that_is_exported_can_go_on_training(student: LoadedClip) -> None:
    before = [each.requires_grad for each in student.model.parameters()]
    ImageEncoder(student)
    TextEncoder(student)
    assert [each.requires_grad for each in student.model.parameters()] == before
    assert student.model.visual is not None
