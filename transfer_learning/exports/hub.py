"""Uploading an export to the Hugging Face Hub."""

from pathlib import Path

from transfer_learning.errors import UserError, needs_extra


def push(folder: Path, repository: str) -> str:
    """Uploads the folder, without hidden files, and returns the address of the commit.

    A new repository is private; its owner publishes it on its page. The token is the one of `hf auth login`, or
    HF_TOKEN.

    Raises:
        MissingExtra: huggingface_hub is not installed.
        UserError: the name is no USER/NAME, the Hub cannot be reached, or it refuses.
    """
    with needs_extra("hub"):
        import huggingface_hub
        from httpx2 import HTTPError  # the client of huggingface_hub; its errors are no OSErrors
        from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

    api = huggingface_hub.HfApi(library_name="transfer-learning")
    try:
        huggingface_hub.utils.validate_repo_id(repository)
        if repository.count("/") != 1:
            raise HFValidationError("it has no USER/ in front")
        api.create_repo(repository, private=True, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository, folder_path=folder, ignore_patterns=".*", commit_message="Export of transfer-learning"
        )
    except HFValidationError as error:
        raise UserError(
            f"--push-to-hub {repository} is not USER/NAME ({error}); give, for example, me/birds."
        ) from None
    except LocalTokenNotFoundError:
        raise UserError("The Hub needs a token; call hf auth login, or set HF_TOKEN, then try again.") from None
    except (HTTPError, OSError, RuntimeError) as error:  # the last of a large file
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"The export could not be uploaded to {repository} ({reason}); check the name and the token (hf auth login), "
            "then try again."
        ) from None
    return str(done.commit_url)
