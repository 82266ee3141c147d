"""Servers that speak TLS, and the certificates by which they are known."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.absent import not_run
from tests.servers import Server, free_port, program
from tests.waiting import wait_until


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


@contextmanager
def watched(file: Path, url: str) -> Iterator[str]:
    """A sentinel that speaks TLS and watches that server under the name `main`; where a client finds it."""
    port = free_port()
    configuration = file.parent / "sentinel.conf"
    configuration.write_text(
        f"port 0\ntls-port {port}\ntls-auth-clients no\ntls-replication yes\ndir {file.parent}\n"
        f"tls-cert-file {file}\ntls-key-file {file.with_suffix('.key')}\ntls-ca-cert-file {file}\n"
        f"sentinel monitor main 127.0.0.1 {urlsplit(url).port} 1\n"
    )
    log = file.parent / "sentinel.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program("redis"), str(configuration), "--sentinel"], stdout=output, stderr=subprocess.STDOUT
        )

    def listens() -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(listens, "the sentinel listens")
        yield f"rediss+sentinel://localhost:{port}/main?ssl_ca_certs={file}"
    finally:
        process.kill()
        process.wait()
