"""The images that a training is validated on: which these are, and whether the options about them fit.

Free of torch: this is checked before a model is loaded.
"""

from collections.abc import Sequence

from beamclip.commands.options import DistillConfig, PretrainConfig
from beamclip.data.listing import list_labelled
from beamclip.errors import InputError
from beamclip.prompts.classes import ClassEntry


def validated_on(config: DistillConfig | PretrainConfig, classes: Sequence[ClassEntry]) -> str | None:
    """Return the address of the images to validate on; None without images, or without classes."""
    address = config.validation.val_data or config.scoring.eval_data
    return str(address) if address and classes else None


def check_validation(config: DistillConfig | PretrainConfig, classes: Sequence[ClassEntry]) -> None:
    """Refuse options of the validation that lack others, or have no effect.

    Args:
        classes: of `scored_classes`.

    Raises:
        InputError: for the first such option.
    """
    own = config.validation
    chosen = own.export_checkpoint == "best"
    given = {"--val-data": own.val_data, "--val-images": own.val_images, "--export-checkpoint best": chosen}
    asked = [flag for flag, value in given.items() if value]
    if own.eval_every == 0 and asked:
        raise InputError(f"{asked[0]} has no effect with --eval-every 0. Leave one of them out.")
    if chosen and own.val_data is None:
        raise InputError(
            "--export-checkpoint best: weights that are chosen on the images that they are scored on have "
            "too high a score. Give other images to choose on with --val-data."
        )
    if own.eval_every or asked:
        flag = asked[0] if asked else f"--eval-every {own.eval_every}"
        if own.val_data is None and config.scoring.eval_data is None:
            raise InputError(f"{flag}: there are no images to validate on. Give --val-data or --eval-data.")
        if not classes:
            raise InputError(f"{flag}: there are no classes to validate on. Give --classes FILE.")


def count_labelled(address: str, *, allow_missing: bool) -> int:
    """Return the number of samples in a labelled data set.

    Raises:
        InputError: see `list_labelled`.
    """
    return sum(shard.samples for shard in list_labelled(address, allow_missing=allow_missing))
