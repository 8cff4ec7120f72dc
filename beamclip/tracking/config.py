"""Options of MLflow tracking."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrackingConfig:
    """How a run appears in MLflow; MLFLOW_TRACKING_URI says where it is tracked."""

    experiment: str | None = None
    """MLflow experiment, created if missing; by default that of MLFLOW_EXPERIMENT_NAME or
    MLFLOW_EXPERIMENT_ID, else beamclip. If given, MLFLOW_RUN_ID, the run to log into, is ignored."""
    run_name: str | None = None
    """Name of the run in MLflow; by default that of the run directory."""
    system_metrics: bool = True
    """Log CPU, memory, disk, network and GPU load of the driver's machine every 10 seconds."""
