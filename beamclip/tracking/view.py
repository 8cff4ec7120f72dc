"""What MLflow's page shows of an experiment first (MLflow 3.17).

Left alone, it opens on its view for language models, and lists runs without a single score. The columns are a
saved view, which is a tag of the experiment. Which of its two halves the page opens is in the address alone.
"""

import json
from urllib.parse import urlencode

VIEW = "beamclip"
"""Name of the view of the runs, and its key in addresses."""

COLUMNS = (
    "metrics.`zeroshot_top1`",
    "metrics.`teacher_zeroshot_top1`",
    "metrics.`probe_top1`",
    "metrics.`knn10_top1`",
    "metrics.`loss`",
    "metrics.`images_per_second`",
    "tags.`command`",
)
"""Columns of the table of runs, beside name, time and duration; the page leaves out those without a value.

Data sets and models of a run are on its own page: here, their columns push the scores off the screen.
"""

VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"

EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    # A saved view, as the page's own menu Views writes it.
    VIEW_TAG: json.dumps(
        {
            "name": VIEW,
            "createdAt": 0,
            "updatedAt": 0,
            "state": json.dumps({"selectedColumns": COLUMNS}),
        }
    ),
}
"""Tags of an experiment: its runs are trainings, which pages without the halves read, and their columns."""


def runs_page(server: str, experiment_id: str, *, with_view: bool) -> str:
    """Return the address of the table of runs of an experiment.

    Args:
        server: address of the MLflow server.
        with_view: whether the experiment has `EXPERIMENT_TAGS`.
    """
    view = {"viewStateShareKey": VIEW} if with_view else {}
    asked = urlencode({"workflowType": "machine_learning", **view})
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{asked}"
