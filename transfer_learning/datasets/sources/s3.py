"""Mirrors the images of a folder in S3 or a compatible store.

Credentials, region and endpoint as for all AWS tools: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; and
AWS_ENDPOINT_URL for a bucket that is not at Amazon.
"""

import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transfer_learning.cli.formatting import size
from transfer_learning.datasets.sources.folder import reason_to_ignore
from transfer_learning.errors import UserError, needs_extra
from transfer_learning.storage.files import read_json, write_json

logger = logging.getLogger(__name__)

SCHEME = "s3://"
INDEX = ".s3.json"  # in the folder: ETag and size of each downloaded object
THREADS = 8  # small objects cost mostly latency
CHUNK = 2**20  # bytes in memory at a time

Objects = dict[str, tuple[str, int]]  # ETag and bytes by the key behind the prefix


def fetch(place: str, folder: Path, also: str) -> tuple[Path, list[tuple[str, str]]]:
    """Downloads the images below ``s3://BUCKET/PREFIX`` to ``folder/BUCKET/PREFIX``.

    Objects with unchanged ETag and size are not downloaded again; files whose object is gone are deleted. Each file is
    written whole or not at all.

    Args:
        also: key after the prefix of the one other object to download.

    Returns:
        The folder; and the other objects with the reason why each was ignored.

    Raises:
        UserError: a wrong place or credentials, no network, or a full disk.
    """
    with needs_extra("s3"):
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = place.removeprefix(SCHEME).strip("/").partition("/")
    root = _inside(folder, f"{bucket}/{prefix}" if prefix else bucket, place)
    prefix = f"{prefix}/" if prefix else ""
    try:
        client = boto3.client("s3", config=Config(retries={"mode": "standard"}, max_pool_connections=THREADS))
        objects = _list(client, bucket, prefix)
        if not objects:
            raise UserError(f"{place} is empty; correct the name.")
        paths = {name: _inside(root, name, place) for name in objects}
        reasons = {name: reason_to_ignore(path, root) for name, path in paths.items() if name != also}
        ignored = {name: reason for name, reason in reasons.items() if reason}
        _mirror(client, bucket, prefix, {name: objects[name] for name in objects if name not in ignored}, root, place)
        return root, [(name, f"not fetched from {place}: {reason}") for name, reason in ignored.items()]
    except ClientError as error:
        answer = error.response.get("Error", {})
        reason = f"{answer.get('Code', 'refused')}: {answer.get('Message', '')}"
    except (BotoCoreError, ValueError) as error:  # ValueError: a malformed endpoint
        reason = str(error)
    except OSError as error:
        raise UserError(
            f"{place} cannot be written to {root} ({error.strerror or error}); free space or pass another "
            "--data-dir, and run again: downloaded files are kept."
        ) from None
    earlier = f"; earlier downloads can be used with --dataset cv_studio:{root}" if (root / INDEX).exists() else ""
    raise UserError(
        f"{place} cannot be read ({reason.strip(' .:')}); check the name and permissions of the bucket, "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL for a bucket that is not at "
        f"Amazon{earlier}."
    )


def _list(client: Any, bucket: str, prefix: str) -> Objects:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    found = [item for page in pages for item in page.get("Contents", ())]
    # Web consoles mark a folder by an empty object whose key ends with a slash.
    files = (item for item in found if not item["Key"].endswith("/"))
    return {item["Key"].removeprefix(prefix): (item["ETag"], item["Size"]) for item in files}


def _mirror(client: Any, bucket: str, prefix: str, objects: Objects, root: Path, place: str) -> None:
    """Makes the files of `root` equal to `objects`."""
    try:
        index = {name: tuple(entry) for name, entry in read_json(root / INDEX).items()}
    except (UserError, TypeError, AttributeError):  # missing or damaged: download everything
        index = {}
    for name in index.keys() - objects.keys():
        _inside(root, name, place).unlink(missing_ok=True)
    sizes = {name: (root / name).stat().st_size for name in objects if (root / name).is_file()}
    present = {
        name: entry for name, entry in objects.items() if index.get(name) == entry and sizes.get(name) == entry[1]
    }
    missing = [name for name in objects if name not in present]
    if missing:
        num_bytes, count = sum(objects[name][1] for name in missing), f"{len(missing):,} of {len(objects):,}"
        logger.info(f"Downloading {count} files from {place} ({size(num_bytes)}) to {root}.")

    def fetch_one(name: str) -> None:
        answer = client.get_object(Bucket=bucket, Key=prefix + name)
        _write(answer["Body"].iter_chunks(CHUNK), root / name)
        present[name] = answer["ETag"], answer["ContentLength"]

    threads = ThreadPoolExecutor(THREADS)
    try:
        for _ in threads.map(fetch_one, missing):
            pass
    finally:
        threads.shutdown(cancel_futures=True)
        if present != index:
            write_json(root / INDEX, present)


def _write(chunks: Iterable[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # hidden, so that it is not read as an image
    try:
        with open(temporary, "wb") as file:
            file.writelines(chunks)  # raises if the answer is truncated
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _inside(folder: Path, name: str, place: str) -> Path:
    """The file `name` below `folder`; raises UserError if it would lie elsewhere."""
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise UserError(
            f"{place} leads to {ascii(name)}, which is not below {folder}; expected s3://BUCKET/PREFIX and keys like "
            "x/1.jpg, so rename it."
        )
    return folder / name
