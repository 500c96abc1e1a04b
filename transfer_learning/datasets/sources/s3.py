"""Folders in S3, and in everything that speaks as S3 does: their images, fetched once.

Credentials, region and endpoint are found as every AWS tool finds them: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or
AWS_PROFILE; and AWS_ENDPOINT_URL where the bucket is not at Amazon.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transfer_learning.cli.formatting import size
from transfer_learning.datasets.sources.folder import reason_to_ignore
from transfer_learning.errors import UserError, needs_extra
from transfer_learning.storage.files import read_json, write_json

SCHEME = "s3://"
INDEX = ".s3.json"  # in the folder: ETag and size of each object that was fetched into it
THREADS = 8  # small objects take as long as the way to them
CHUNK = 2**20  # bytes in memory at a time

Objects = dict[str, tuple[str, int]]  # ETag and bytes by the key behind the prefix


def fetch(place: str, folder: Path, also: str) -> tuple[Path, list[tuple[str, str]]]:
    """Brings the images below ``s3://BUCKET/PREFIX`` to ``folder/BUCKET/PREFIX``.

    An object whose ETag and size are those of what was fetched before is not fetched again, and a file whose object has
    gone is deleted. A file is there whole or not at all.

    Args:
        also: key behind the prefix of the one other object to fetch.

    Returns:
        That folder, and the other objects, each with the reason why it was left out.

    Raises:
        UserError: the place, the credentials or the network are not as they should be, or the disk is full.
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
            raise UserError(f"{place} holds nothing; images were expected there, so correct the name.")
        paths = {name: _inside(root, name, place) for name in objects}
        ignored = {
            name: reason for name, path in paths.items() if name != also and (reason := reason_to_ignore(path, root))
        }
        _mirror(client, bucket, prefix, {name: objects[name] for name in objects if name not in ignored}, root, place)
        return root, [(name, f"not fetched from {place}: {reason}") for name, reason in ignored.items()]
    except ClientError as error:
        answer = error.response.get("Error", {})
        reason = f"{answer.get('Code', 'refused')}: {answer.get('Message', '')}"
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no address
        reason = str(error)
    except OSError as error:
        raise UserError(
            f"{root} cannot take what {place} holds ({error.strerror or error}); free some space or give another --data-dir, "
            "and run again: what was fetched stays."
        ) from None
    earlier = f"; what was fetched before is read with --dataset cv_studio:{root}" if (root / INDEX).exists() else ""
    raise UserError(
        f"{place} cannot be read ({reason.strip(' .:')}); a bucket that you may list and read was expected, so check its "
        f"name, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL where it is not at Amazon{earlier}."
    )


def _list(client: Any, bucket: str, prefix: str) -> Objects:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    found = [item for page in pages for item in page.get("Contents", ())]
    # Web pages of providers mark a folder by an empty object whose key ends with a slash.
    return {
        item["Key"].removeprefix(prefix): (item["ETag"], item["Size"])
        for item in found
        if not item["Key"].endswith("/")
    }


def _mirror(client: Any, bucket: str, prefix: str, objects: Objects, root: Path, place: str) -> None:
    """Makes the fetched files of `root` those of `objects`."""
    try:
        index = {name: tuple(entry) for name, entry in read_json(root / INDEX).items()}
    except (UserError, TypeError, AttributeError):  # not there, or damaged: all is fetched again
        index = {}
    for name in index.keys() - objects.keys():
        _inside(root, name, place).unlink(missing_ok=True)
    kept = {name: entry for name, entry in objects.items() if index.get(name) == entry and _has(root / name, entry[1])}
    missing = [name for name in objects if name not in kept]
    if missing:
        num_bytes = sum(objects[name][1] for name in missing)
        print(f"Fetching {len(missing):,} of {len(objects):,} files from {place} ({size(num_bytes)}) into {root}.")

    def fetch_one(name: str) -> None:
        answer = client.get_object(Bucket=bucket, Key=prefix + name)
        _write(answer["Body"].iter_chunks(CHUNK), root / name)
        kept[name] = answer["ETag"], answer["ContentLength"]

    threads = ThreadPoolExecutor(THREADS)
    try:
        for _ in threads.map(fetch_one, missing):
            pass
    finally:
        threads.shutdown(cancel_futures=True)
        if kept != index:
            write_json(root / INDEX, kept)


def _write(chunks: Iterable[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # hidden, so that no reader takes it for an image
    try:
        with open(temporary, "wb") as file:
            file.writelines(chunks)  # raises where the answer is cut short
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _has(path: Path, num_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == num_bytes


def _inside(folder: Path, name: str, place: str) -> Path:
    """The file of that name below `folder`; UserError where it would lie elsewhere."""
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise UserError(
            f"{place} leads to {ascii(name)}, which is no place below {folder}; s3://BUCKET/PREFIX and keys like x/1.jpg "
            "were expected, so rename it."
        )
    return folder / name
