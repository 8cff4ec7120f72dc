"""Upload an open_clip directory to the Hugging Face hub."""

from pathlib import Path

from beamclip.errors import FailedRunError, InputError

_NAME_ADVICE = "Give ORG/NAME, such as my-team/birds-resnet18."


def check_hub(repository: str) -> None:
    """Ask the hub who we are, with the token of `hf auth login` or HF_TOKEN.

    Raises:
        InputError: the name is none of a repository, there is no token, or the hub refuses it or does not
            answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        if "/" not in repository:
            raise HFValidationError("it has no organisation or user")
        HfApi().whoami()
    except HFValidationError as error:
        reason = first_sentence(error)
        raise InputError(
            f"--push {repository}: is no name of a repository ({reason}). {_NAME_ADVICE}"
        ) from error
    except LocalTokenNotFoundError as error:
        raise InputError(
            f"--push {repository}: there is no token for the hub. Run `hf auth login`, or set HF_TOKEN."
        ) from error
    except HfHubHTTPError as error:
        raise InputError(
            f"--push {repository}: the hub refuses the token ({first_sentence(error)}). Run `hf auth "
            "login` with one that may write."
        ) from error
    except Exception as error:  # errors of the network share no base class
        raise InputError(
            f"--push {repository}: the hub cannot be reached ({first_sentence(error)}). Check the network "
            "and HF_HUB_OFFLINE, or leave --push out and upload the folder later: hf upload."
        ) from error


def push(directory: Path, repository: str, *, public: bool) -> str:
    """Upload a directory; the repository is made if it does not exist.

    Args:
        public: whether a new repository can be read by everybody. An existing one stays as it is.

    Returns:
        The address of the repository.

    Raises:
        FailedRunError: the hub refuses the repository or the files; the directory is kept.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=directory, commit_message="Upload an open_clip model"
        )
    except Exception as error:
        raise FailedRunError(
            f"--push {repository}: the upload failed ({first_sentence(error)}). The model is in {directory}. "
            f"Run `hf upload {repository} {directory}` to try again."
        ) from error
    return str(address)


def first_sentence(error: Exception) -> str:
    """Return the start of an error's message, in one line without a full stop."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")
