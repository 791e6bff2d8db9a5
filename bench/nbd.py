"""The peer: `nbdcopy` over TLS into an nbdkit server that writes a file, flushed at the end."""

import datetime as dt
import ipaddress
import shutil
import subprocess
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from demo.ports import free_port

NEEDED = ("nbdcopy", "nbdkit")


def missing() -> list[str]:
    return [program for program in NEEDED if shutil.which(program) is None]


def copy_seconds(source: Path, folder: Path, *, at: str = "127.0.0.1", inside: tuple[str, ...] = ()) -> float:
    """Into a server at that address, started by way of the command `inside`."""
    folder.mkdir()
    certificates(folder / "pki", at)
    target = folder / "target.raw"
    with target.open("wb") as file:
        file.truncate(source.stat().st_size)
    port = free_port()
    server = subprocess.Popen(
        [
            *inside, "nbdkit", "--foreground", "--exit-with-parent", f"--ipaddr={at}", f"--port={port}",
            "--tls=require", f"--tls-certificates={folder}/pki", "--tls-verify-peer", "file", str(target),
        ]
    )  # fmt: skip
    try:
        time.sleep(0.5)
        address = f"nbds://{at}:{port}/?tls-certificates={folder}/pki"
        started = time.monotonic()
        subprocess.run(["nbdcopy", "--flush", str(source), address], check=True)
        return time.monotonic() - started
    finally:
        server.terminate()
        server.wait()
        target.unlink()


def certificates(folder: Path, at: str = "127.0.0.1") -> None:
    """As GnuTLS programs want them: a CA, and one pair that is server and client."""
    folder.mkdir()
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("bench CA", ca_key.public_key(), "bench CA", ca_key, ca=True)
    made = _certificate(at, key.public_key(), "bench CA", ca_key, ca=False)
    pem = serialization.Encoding.PEM
    (folder / "ca-cert.pem").write_bytes(ca.public_bytes(pem))
    for role in ("server", "client"):
        (folder / f"{role}-cert.pem").write_bytes(made.public_bytes(pem))
        (folder / f"{role}-key.pem").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )


def _certificate(
    name: str, public: ec.EllipticCurvePublicKey, issuer: str, signer: ec.EllipticCurvePrivateKey, *, ca: bool
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    if not ca:
        names.append(x509.IPAddress(ipaddress.ip_address(name)))
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(signer, hashes.SHA256())
    )
