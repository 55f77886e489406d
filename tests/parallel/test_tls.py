"""A cluster that speaks TLS only: a run needs the right certificates, and says so without them.

The certificates are made here; Dask finds them by its own settings.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import gps

SECONDS = 120  # that a process may take, at most
CONNECT = 6.0  # Dask's limit for a connection


def openssl(*argv):
    subprocess.run(["openssl", *map(str, argv)], check=True, capture_output=True, timeout=60)


def certificates(folder: Path) -> dict[str, str]:
    """A CA of its own, a certificate for 127.0.0.1 signed by it, and Dask's settings for them."""
    folder.mkdir()
    ca, key, cert = (folder / name for name in ("ca.pem", "key.pem", "cert.pem"))
    if shutil.which("openssl"):
        _with_openssl(folder, ca, key, cert)
    else:
        _with_cryptography(ca, key, cert)
    settings = {"CA_FILE": ca}
    for who in ("SCHEDULER", "WORKER", "CLIENT"):
        settings |= {f"{who}__KEY": key, f"{who}__CERT": cert}
    return {f"DASK_DISTRIBUTED__COMM__TLS__{k}": str(v) for k, v in settings.items()}


def _with_openssl(folder, ca, key, cert):
    ca_key, request, names = (folder / n for n in ("ca_key.pem", "request.pem", "names"))
    new = ("-newkey", "rsa:2048", "-nodes")
    openssl(
        *("req", "-x509", *new, "-keyout", ca_key, "-out", ca, "-days", 2, "-subj", "/CN=test-ca"),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
    )
    openssl("req", *new, "-keyout", key, "-out", request, "-subj", "/CN=127.0.0.1")
    names.write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(
        *("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial"),
        *("-out", cert, "-days", 2, "-extfile", names),
    )


def _with_cryptography(ca, key, cert):
    pytest.importorskip("cryptography", reason="needs the openssl command or cryptography")
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    now = datetime.datetime.now(datetime.UTC)
    ca_key, own = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    issuer, subject = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)])
        for n in ("test-ca", "127.0.0.1")
    )

    def signed(name, public, extension):
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(extension, critical=name is issuer)
        )
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    ca.write_bytes(signed(issuer, ca_key.public_key(), x509.BasicConstraints(True, None)))
    cert.write_bytes(signed(subject, own.public_key(), address))
    key.write_bytes(
        own.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Address of a scheduler with one worker, and the settings to join it."""
    folder = tmp_path_factory.mktemp("tls")
    settings = certificates(folder / "own")
    file = folder / "scheduler.json"
    processes = []

    def start(module, *argv):
        log = open(folder / f"{module}.log", "wb")  # noqa: SIM115 (the process holds it)
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{module}", *map(str, argv)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(settings),
            cwd=folder,
        )
        log.close()
        processes.append(process)
        return process

    try:
        scheduler = start(
            *("dask_scheduler", "--protocol", "tls", "--host", "127.0.0.1", "--port", 0),
            *("--no-dashboard", "--scheduler-file", file),
        )
        deadline = time.monotonic() + SECONDS
        address = None
        while address is None:
            assert scheduler.poll() is None, (folder / "dask_scheduler.log").read_text()
            assert time.monotonic() < deadline
            with suppress(OSError, ValueError):  # not there, or not whole yet
                address = json.loads(file.read_text())["address"]
            time.sleep(0.05)
        start(
            *("dask_worker", address, "--no-nanny", "--nthreads", 1, "--no-dashboard"),
            *("--local-directory", folder),
        )
        yield address, settings
    finally:
        for process in processes:
            process.kill()
            process.wait()


def environment(settings):
    env = {k: v for k, v in os.environ.items() if not k.startswith("DASK_")}
    return env | {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": f"{CONNECT:g}s"} | settings


def gps_run(folder, address, settings):
    """Exit code, stdout, stderr and seconds of a run on the cluster."""
    argv = ["run", "point_mass", "--iterations", "1", "--scheduler", address]
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "gps.cli", *argv, "--out", str(folder / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(settings),
        cwd=folder,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
    return process.returncode, out, err, time.monotonic() - begin


def hashes(folder):
    files = sorted((folder / "iterations").iterdir())
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_a_run_with_certificates(cluster, tmp_path):
    address, settings = cluster
    assert address.startswith("tls://127.0.0.1:")
    # the first connection may have to wait for the worker to start
    settings = settings | {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "60s"}
    code, out, err, _ = gps_run(tmp_path, address, settings)
    assert code == 0, err
    assert "done; look at the result" in out
    assert "Traceback" not in err
    for _ in gps.run(gps.load("point_mass"), iterations=1, out=tmp_path / "serial"):
        pass
    assert hashes(tmp_path / "run") == hashes(tmp_path / "serial")


@pytest.mark.parametrize("wrong", ["none", "foreign", "missing file", "plain tcp"])
def test_a_run_without_the_right_certificates(cluster, wrong, tmp_path):
    address, settings = cluster
    if wrong == "none":
        settings = {}
    elif wrong == "foreign":
        settings = certificates(tmp_path / "foreign")
    elif wrong == "missing file":
        settings = {k: v + ".gone" for k, v in settings.items()}
    else:
        address = address.replace("tls://", "tcp://")
    code, out, err, seconds = gps_run(tmp_path, address, settings)
    assert "Traceback" not in out + err
    assert code == 2, err
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith(f"gps: error: --scheduler {address}: ")
    assert "scheduler answers there" in lines[0]
    if wrong == "none":
        assert "TLS" in lines[0]
    if wrong == "foreign":
        assert "TLS certificate does not match" in lines[0]
    assert seconds < 60 + CONNECT
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())
