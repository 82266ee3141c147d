"""Servers that speak TLS, and the certificates by which they are known."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.absent import not_run
from tests.servers import Server, free_port


def certificate(folder: Path, *names: str) -> Path:
    """One that vouches for itself, of a server of these names, with its key beside it."""
    if shutil.which("openssl") is None:
        not_run("openssl", "makes the certificates of the tests of TLS")
    file = folder / f"{names[0].partition(':')[2]}.pem"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    files = ("-keyout", str(file.with_suffix(".key")), "-out", str(file))
    claims = ("-addext", "basicConstraints=critical,CA:FALSE", "-addext", f"subjectAltName={','.join(names)}")
    words = ("openssl", "req", "-x509", "-days", "2", "-subj", "/CN=test", *curve, *files, *claims)
    subprocess.run(words, check=True, capture_output=True)
    return file


@contextmanager
def secured(file: Path, **settings: Any) -> Iterator[tuple[Server, str]]:
    port = free_port()
    keys = {"tls_cert_file": file, "tls_key_file": file.with_suffix(".key"), "tls_ca_cert_file": file}
    settings |= {name: str(path) for name, path in keys.items()}
    with Server("redis", tls_port=port, tls_auth_clients="no", **settings) as server:
        yield server, f"rediss://localhost:{port}?ssl_ca_certs={file}"
