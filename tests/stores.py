"""An object store on this machine for tests: moto's server on the loopback."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairanon.places import place

ACCESS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an empty bucket; other processes reach it, too."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    urllib.request.urlopen(
        urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
    )  # of another module
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (*ACCESS.items(), ("AWS_ENDPOINT_URL", f"http://{host}:{port}")):
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem(use_listings_cache=False).mkdir("bucket")
        yield "s3://bucket"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def upload(folder: Path, to: str) -> Path:
    """Put a folder's files into a store."""
    there = place(to)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (there / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
    return there


def objects(address: str) -> dict[str, bytes]:
    """All objects below an address."""
    there = place(address)
    root = there.path
    return {name.removeprefix(f"{root}/"): there.fs.cat_file(name) for name in there.fs.find(root)}
