"""envtest's convention: etcd and kube-apiserver from one folder, on loopback."""

import secrets
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import trustme
import yaml

UP_S = 60.0


def free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


@contextmanager
def _running(folder: Path, *command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
        process = subprocess.Popen([*map(str, command)], stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


@contextmanager
def started(
    assets: Path, folder: Path, accounts: Sequence[str]
) -> Iterator[tuple[Path, dict[str, str]]]:
    """The kubeconfig of an administrator, and the tokens of ServiceAccounts (namespace/name)."""
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1", "localhost")
    for name, blob in (("ca", authority.cert_pem), ("key", server.private_key_pem)):
        blob.write_to_path(folder / f"{name}.pem")
    for part in server.cert_chain_pems:
        part.write_to_path(folder / "cert.pem", append=True)
    admin, tokens = secrets.token_hex(16), {name: secrets.token_hex(16) for name in accounts}
    rows = [f'{admin},admin,admin,"system:masters"']
    for name, token in tokens.items():
        space, _, account = name.partition("/")
        groups = f"system:serviceaccounts,system:serviceaccounts:{space}"
        rows.append(f'{token},system:serviceaccount:{space}:{account},{name},"{groups}"')
    (folder / "tokens.csv").write_text("\n".join(rows) + "\n")
    client, peer, port = free_port(), free_port(), free_port()
    etcd = [f"--data-dir={folder / 'etcd'}", "--unsafe-no-fsync"]
    for option, number in (("client", client), ("peer", peer)):
        etcd.append(f"--listen-{option}-urls=http://127.0.0.1:{number}")
    etcd.append(f"--advertise-client-urls=http://127.0.0.1:{client}")
    api = [
        f"--etcd-servers=http://127.0.0.1:{client}",
        f"--secure-port={port}",
        "--bind-address=127.0.0.1",
        f"--tls-cert-file={folder / 'cert.pem'}",
        f"--tls-private-key-file={folder / 'key.pem'}",
        f"--service-account-key-file={folder / 'key.pem'}",
        f"--service-account-signing-key-file={folder / 'key.pem'}",
        f"--service-account-issuer=https://127.0.0.1:{port}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        "--disable-admission-plugins=ServiceAccount",
        "--service-cluster-ip-range=10.0.0.0/24",
    ]
    kubeconfig = folder / "kubeconfig"
    at = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(folder / "ca.pem")}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "envtest", "cluster": at}],
        "users": [{"name": "admin", "user": {"token": admin}}],
        "contexts": [{"name": "envtest", "context": {"cluster": "envtest", "user": "admin"}}],
        "current-context": "envtest",
    }
    kubeconfig.write_text(yaml.safe_dump(config))
    kubeconfig.chmod(0o600)
    with ExitStack() as stack:
        stack.enter_context(_running(folder, assets / "etcd", *etcd))
        process = stack.enter_context(_running(folder, assets / "kube-apiserver", *api))
        end = time.monotonic() + UP_S
        ready = [str(assets / "kubectl"), f"--kubeconfig={kubeconfig}", "get", "--raw", "/readyz"]
        while subprocess.run(ready, capture_output=True, check=False).returncode:
            assert process.poll() is None, f"kube-apiserver ended: see {folder}"
            assert time.monotonic() < end, f"kube-apiserver is not ready: see {folder}"
            time.sleep(0.2)
        yield kubeconfig, tokens
