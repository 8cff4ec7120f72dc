"""MLflow's logged models: the one that a run made, and those of other runs or places that it used."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beamclip.tracking.lineage import ModelRef
from beamclip.tracking.place import tracked_run_id

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXTERNAL = "external"
"""Value of the tag `origin` of a model that stands for one that no run in the store made."""


def own_model(client: "MlflowClient", run_id: str) -> str | None:
    """Return the id of the logged model that a run made, or None."""
    experiment = client.get_run(run_id).info.experiment_id
    # Their creation and their link to the run are two requests: after the first alone, only this finds them.
    found = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    return str(found[0].model_id) if found else None


def make_model(client: "MlflowClient", run_id: str, event: Mapping[str, Any]) -> str:
    """Make the logged model of a run, unless it was made before, and return its id."""
    from mlflow.entities import LoggedModelOutput

    model_id = own_model(client, run_id)
    if model_id is None:
        made = client.create_logged_model(
            client.get_run(run_id).info.experiment_id,
            name=_valid_name(event["name"]),
            source_run_id=run_id,
            tags=event["tags"],
            params=event["params"],
            model_type=event["type"],
        )
        model_id = str(made.model_id)
    outputs = client.get_run(run_id).outputs
    if not outputs or model_id not in [each.model_id for each in outputs.model_outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, event["step"])])
    return model_id


def used_model(client: "MlflowClient", run_id: str, ref: ModelRef) -> str:
    """Return the id of a model that a run uses: that of the run which made it, else a stand-in.

    The stand-in has the model's address and fingerprint in its tags, and is made once in each experiment.
    """
    made_by = tracked_run_id(Path(ref.run_dir)) if ref.run_dir else None
    if made_by:
        try:
            model_id = own_model(client, made_by)
        except Exception as error:
            if getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                raise
            model_id = None  # it was tracked in another store
        if model_id is not None:
            return model_id
    experiment = client.get_run(run_id).info.experiment_id
    name, tags = _valid_name(ref.address), {"origin": EXTERNAL, "fingerprint": ref.fingerprint}
    known = f"name = '{name}' AND tags.fingerprint = '{ref.fingerprint}' AND tags.origin = '{EXTERNAL}'"
    found = client.search_logged_models([experiment], filter_string=known)
    if found:
        return str(found[0].model_id)
    made = client.create_logged_model(experiment, name=name, tags={**tags, "address": ref.address})
    client.finalize_logged_model(made.model_id, "READY")
    return str(made.model_id)


def _valid_name(name: str) -> str:
    """Replace what MLflow refuses in the name of a logged model."""
    return re.sub(r"[/:.%\"'`]+", "-", name).strip("-")[-250:] or "model"
