"""What a run is called in MLflow, as options."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrackingConfig:
    """What a run is called in MLflow; MLFLOW_TRACKING_URI says where it is tracked."""

    experiment: str | None = None
    """MLflow experiment, made when missing; by default that of MLFLOW_EXPERIMENT_NAME or
    MLFLOW_EXPERIMENT_ID, else beamclip. Where it is given, MLFLOW_RUN_ID, the run to log into, is ignored."""
    run_name: str | None = None
    """Name of the run in MLflow; by default that of the run directory."""
    system_metrics: bool = True
    """Log load of processor, memory, disk, network and GPU of the driver's machine every 10 seconds."""
