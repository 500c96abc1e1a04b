"""Downloads of published files, which are known by their digest."""

import hashlib
import http.client
import logging
import shutil
import textwrap
import urllib.error
import urllib.request
from pathlib import Path

from transfer_learning.cli.formatting import size
from transfer_learning.errors import UserError
from transfer_learning.storage.files import written_atomically

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 20  # for the connection and for each read: a dead network fails, a slow one finishes


def download(url: str, path: Path, digest: str | None, otherwise: str) -> Path:
    """Returns `path`, a published file that is downloaded where it is missing.

    Args:
        digest: md5 (32 hex digits) or sha256 of the file; None: it is not known.
        otherwise: what the user can do without it, for the message.

    Raises:
        UserError: the file cannot be downloaded or is not the published one; nothing partial stays.
    """
    if path.exists():
        if digest and file_digest(path, digest) != digest:
            raise UserError(f"{path} is damaged (its digest is not {digest}); delete it and run again, or {otherwise}.")
        return path
    try:
        with (
            written_atomically(path) as temporary,
            urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response,
            open(temporary, "wb") as file,
        ):
            num_bytes = response.headers.get("Content-Length", "")
            logger.info(f"Downloading {url}{f' ({size(int(num_bytes))})' if num_bytes.isdigit() else ''} to {path}.")
            shutil.copyfileobj(response, file, 1 << 20)
            file.flush()
            if num_bytes.isdigit() and file.tell() != int(num_bytes):  # a cut body is no error of urllib
                raise OSError(f"{file.tell():,} of {int(num_bytes):,} bytes were sent")
            if digest and file_digest(temporary, digest) != digest:
                raise OSError(f"the digest of what was sent is not {digest}")
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # an open connection
        raise not_downloaded(path.name, error, f"download {url} to {path.parent} by hand, or {otherwise}") from error
    return path


def not_downloaded(what: str, error: Exception, otherwise: str) -> UserError:
    """The error for a download that failed, whoever tried it."""
    reason = textwrap.shorten(str(error) or type(error).__name__, 120, placeholder=" ...")
    return UserError(f"{what} cannot be downloaded ({reason}); {otherwise}.")


def file_digest(path: Path, expected: str) -> str:
    """The digest (hex) of a file by the algorithm of `expected`: md5 for 32 digits, else sha256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5" if len(expected) == 32 else "sha256").hexdigest()
