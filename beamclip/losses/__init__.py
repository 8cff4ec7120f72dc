"""Losses: tensors in, one scalar out. No I/O, no state, no options objects inside."""

from typing import TYPE_CHECKING

from beamclip.lazy import lazily

if TYPE_CHECKING:
    from beamclip.losses.config import PsdConfig as PsdConfig
    from beamclip.losses.contrastive import GlobalRows as GlobalRows
    from beamclip.losses.contrastive import clip_loss as clip_loss
    from beamclip.losses.csm import csm_ensemble_loss as csm_ensemble_loss
    from beamclip.losses.csm import csm_loss as csm_loss
    from beamclip.losses.feature import feature_loss as feature_loss
    from beamclip.losses.psd import PsdStep as PsdStep
    from beamclip.losses.psd import psd_loss as psd_loss
    from beamclip.losses.psd import psd_share as psd_share
    from beamclip.losses.sigmoid import sigmoid_loss as sigmoid_loss
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "GlobalRows": "contrastive",
            "PsdConfig": "config",
            "PsdStep": "psd",
            "clip_loss": "contrastive",
            "csm_ensemble_loss": "csm",
            "csm_loss": "csm",
            "feature_loss": "feature",
            "psd_loss": "psd",
            "psd_share": "psd",
            "sigmoid_loss": "sigmoid",
        },
    )
