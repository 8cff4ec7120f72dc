"""beamclip: transfer what a large CLIP model knows into small vision models, on a Ray cluster.

    import beamclip

    beamclip.distill(data="shards", teacher="open_clip:ViT-B-16/openai", classes="classes.yaml", out="runs/a")
    model = beamclip.load("runs/a")
    model.classify("bird.jpg", ["crane", "heron"])

The commands that download, train, score and export are functions here. `beamclip.losses`, `beamclip.models`
and `beamclip.data` hold the parts for a training loop of one's own. Nothing is imported before it is used.
"""

from typing import TYPE_CHECKING

from beamclip.lazy import MODULE, lazily
from beamclip.ray_environment import set_ray_environment

__version__ = "0.2.0.dev0"

# Ray reads its settings when it is imported, which any module of this package may be the first to do.
set_ray_environment()

if TYPE_CHECKING:
    from beamclip import data as data
    from beamclip import losses as losses
    from beamclip import models as models
    from beamclip.api.commands import distill as distill
    from beamclip.api.commands import embed as embed
    from beamclip.api.commands import evaluate as evaluate
    from beamclip.api.commands import export as export
    from beamclip.api.commands import ingest as ingest
    from beamclip.api.commands import interpolate as interpolate
    from beamclip.api.commands import pretrain as pretrain
    from beamclip.api.commands import sweep as sweep
    from beamclip.api.model import Model as Model
    from beamclip.api.model import Prediction as Prediction
    from beamclip.api.model import load as load
    from beamclip.errors import InputError as InputError
    from beamclip.summary import Summary as Summary
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "InputError": "errors",
            "Model": "api.model",
            "Prediction": "api.model",
            "Summary": "summary",
            "data": MODULE,
            "distill": "api.commands",
            "embed": "api.commands",
            "evaluate": "api.commands",
            "export": MODULE,
            "ingest": MODULE,
            "interpolate": "api.commands",
            "load": "api.model",
            "losses": MODULE,
            "models": MODULE,
            "pretrain": "api.commands",
            "sweep": MODULE,
        },
    )
