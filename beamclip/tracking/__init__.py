"""MLflow tracking that never stops or slows a run.

One `Tracking` lives in the driver process; workers send their records there, so a restarted worker
continues the same MLflow run and a SQLite store has one writer. A background thread does all the sending.
What cannot be sent is kept in `mlflow_unsent.jsonl` in the run directory; it is sent as soon as the store
answers again, or later by `python -m beamclip.tracking replay RUN_DIR`. Every record carries the time it
was made, and MLflow's SQL stores keep one copy of equal records, so sending one twice does no harm.
"""

from beamclip.tracking.config import TrackingConfig
from beamclip.tracking.lineage import Dataset, ModelRef, run_dir_of
from beamclip.tracking.place import TRACKING_FILE, notes_folder, tracked_run_id, tracking_uri
from beamclip.tracking.run import Tracking
from beamclip.tracking.unsent import UNSENT_FILE, replay

__all__ = [
    "TRACKING_FILE",
    "UNSENT_FILE",
    "Dataset",
    "ModelRef",
    "Tracking",
    "TrackingConfig",
    "notes_folder",
    "replay",
    "run_dir_of",
    "tracked_run_id",
    "tracking_uri",
]
