"""beamclip: transfer what a large CLIP model knows into small vision models, on a Ray cluster."""

from beamclip.ray_environment import set_ray_environment

__version__ = "0.2.0.dev0"

# Ray reads its settings when it is imported, which any module of this package may be the first to do.
set_ray_environment()
