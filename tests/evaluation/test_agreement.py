"""Agreement of two models against torch's own KL divergence and a count by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from beamclip.evaluation.agreement import agreement
from beamclip.prompts.anchors import Anchors

IMAGES, CLASSES = 30, 7


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def anchors(width: int, seed: int) -> Anchors:
    return Anchors(unit(CLASSES, width, seed=seed), torch.arange(CLASSES))


def test_figures_equal_those_computed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beamclip.evaluation.agreement.CHUNK_ELEMENTS", 60)
    student, teacher = unit(IMAGES, 8, seed=0), unit(IMAGES, 12, seed=1)
    ours, theirs = anchors(8, 2), anchors(12, 3)
    labels = torch.arange(IMAGES) % CLASSES
    found = agreement(student, teacher, labels, ours, theirs, CLASSES, temperature=0.1)
    s, t = student @ ours.embeddings.T / 0.1, teacher @ theirs.embeddings.T / 0.1
    kl = F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="none", log_target=True).sum(dim=1)
    torch.testing.assert_close(found.kl, kl, atol=1e-5, rtol=1e-4)
    assert found.same_class.tolist() == (s.argmax(1) == t.argmax(1)).tolist()
    assert (found.teacher_ranks == 0).tolist() == (t.argmax(1) == labels).tolist()
    assert found.cosine is None


def test_a_model_agrees_with_itself() -> None:
    embeddings, own, labels = unit(IMAGES, 8, seed=0), anchors(8, 2), torch.zeros(IMAGES, dtype=torch.long)
    found = agreement(embeddings, embeddings, labels, own, own, CLASSES, temperature=0.01)
    assert found.same_class.all()
    torch.testing.assert_close(found.kl, torch.zeros(IMAGES))
    assert found.cosine is not None
    torch.testing.assert_close(found.cosine, torch.ones(IMAGES))


def test_other_numbers_of_images_are_refused() -> None:
    own, labels = anchors(8, 2), torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match="3 embeddings by the student, 2 by the teacher"):
        agreement(unit(3, 8, seed=0), unit(2, 8, seed=0), labels, own, own, CLASSES, temperature=0.1)
