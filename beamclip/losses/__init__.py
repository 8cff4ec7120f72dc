"""Losses: tensors in, one scalar out. No configuration objects inside, no I/O, no state."""

from beamclip.losses.contrastive import clip_loss, gather_with_grad
from beamclip.losses.csm import CsmConfig, csm_loss
from beamclip.losses.feature import FeatureConfig, feature_loss

__all__ = ["CsmConfig", "FeatureConfig", "clip_loss", "csm_loss", "feature_loss", "gather_with_grad"]
