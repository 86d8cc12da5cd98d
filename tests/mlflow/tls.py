"""What a test needs of an MLflow server that speaks TLS.

    tls.py make FOLDER       an authority of our own (ca.pem) and a certificate for 127.0.0.1 that it signed (server.pem, .key)
    tls.py wait              until the server of MLflow's variables takes a login, trusting nobody but their authority

Needs `cryptography`, which MLflow brings along.
"""

import base64
import ipaddress
import os
import ssl
import sys
import time
import urllib.request
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def certificate(name, key, issuer, issuer_key, extension):
    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).add_extension(extension, critical=True)
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=2))
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def make(folder):
    named = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = named("authority of a test")
    ca = certificate(issuer, authority, issuer, authority, x509.BasicConstraints(ca=True, path_length=0))
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    Path(folder, "ca.pem").write_bytes(ca)
    Path(folder, "server.pem").write_bytes(certificate(named("server"), server, issuer, authority, address))
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    Path(folder, "server.key").write_bytes(server.private_bytes(serialization.Encoding.PEM, *plain))


def wait():
    uri, authority, user, password = (
        os.environ[f"MLFLOW_TRACKING_{name}"] for name in ("URI", "SERVER_CERT_PATH", "USERNAME", "PASSWORD"))
    context = ssl.create_default_context(cafile=authority)
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    # The first answer of a kind takes long, and a server that is healthy may not have given one yet.
    question = urllib.request.Request(
        f"{uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default", headers={"Authorization": f"Basic {login}"})
    for _ in range(600):
        try:
            urllib.request.urlopen(question, timeout=60, context=context)
            return
        except OSError:
            time.sleep(0.5)
    sys.exit(f"{uri} takes no login")


if __name__ == "__main__":
    {"make": make, "wait": wait}[sys.argv[1]](*sys.argv[2:])
