"""Measure how well templates fit a model, without any label: how much its predictions say about the images.

A text tower that does not know a template puts the prompts of all classes close together, or makes a few of
them the nearest of every image. Confidence does not show the second fault: it can even rise. Both show in the
information that an image carries about the predicted class, which is high if each prediction is sure and the
predictions differ from image to image.

This was tried on three teachers trained from scratch, whose captions were bare names, "a photo of a ..." and
those of the embedded corpus, with six sets of templates each: information was largest for the most accurate
set, or for one less than a point of accuracy below it. Mean confidence and the margin between the two best
classes were largest for other sets.
"""

import torch
from torch import Tensor

from beamclip.losses.similarity import similarities


def information(images: Tensor, anchors: Tensor, logit_scale: float) -> float:
    """Return the mutual information of image and predicted class, nats.

    With p_i = softmax(logit_scale * anchors @ image_i) and their mean p, it is the mean of KL(p_i || p), or
    the entropy of the mean less the mean entropy (Bridle et al., NIPS 1991).

    Args:
        images: [N, D] embeddings, unit length.
        anchors: [K, D] embeddings, one per class, unit length.
        logit_scale: the model's own factor of the similarities.

    Returns:
        A value from 0, if all predictions are the same, to ln(min(N, K)).
    """
    predicted = (logit_scale * similarities(images.float(), anchors.float())).softmax(dim=1)
    entropy = torch.special.entr(predicted).sum(dim=1).mean()
    return float(torch.special.entr(predicted.mean(dim=0)).sum() - entropy)
