"""Another machine, as far as a test can have one: a network namespace with a loopback of its own, and an sshd in it."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
_CONFIG = """\
Port {port}
ListenAddress {address}
HostKey {folder}/host
AuthorizedKeysFile {folder}/key.pub
PidFile {folder}/pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
SetEnv HOME={folder}/home PYTHONPATH={repository} HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"""


@dataclass(frozen=True)
class Namespace:
    """A network of its own, with one cable to this machine."""

    name: str
    here: str  # address of this machine on the cable
    there: str

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *words]

    def python(self, script: str, *arguments: str) -> str:
        """What a script prints over there."""
        command = self.command(sys.executable, "-c", script, *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    def connects(self, port: int) -> bool:
        """Whether a port of this machine takes a connection from over there."""
        script = (
            "import socket, sys\ntry: socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)\n"
            "except ConnectionRefusedError: print('refused')\nelse: print('open')"
        )
        said = self.python(script, self.here, str(port))
        assert said in ("open", "refused"), said
        return said == "open"

    def listening(self) -> dict[int, str]:
        """Ports that are listened on over there -> the address as the kernel writes it, little-endian hexadecimal."""
        text = self.python("print(open('/proc/net/tcp').read() + open('/proc/net/tcp6').read())")
        lines = [line.split() for line in text.splitlines() if line.split()[3] == "0A"]
        return {int(line[1].split(":")[1], 16): line[1].split(":")[0] for line in lines}


LOOPBACK = "0100007F"  # 127.0.0.1, see Namespace.listening


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """Made, and gone at the end; the test is skipped where that is not allowed."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a network namespace needs root and iproute2")
    number = os.getpid() % 60000
    name, net = f"bertnas{number}", f"10.{77 + number // 15000}.{number % 15000 // 60}.{number % 60 * 4}"
    here, there = (f"{net.rpartition('.')[0]}.{int(net.rpartition('.')[2]) + one}" for one in (1, 2))
    cable = (f"bn{number}a", f"bn{number}b")

    def run(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        run("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        run("link", "add", cable[0], "type", "veth", "peer", "name", cable[1], "netns", name)
        run("addr", "add", f"{here}/30", "dev", cable[0])
        run("link", "set", cable[0], "up")
        run("-n", name, "addr", "add", f"{there}/30", "dev", cable[1])
        run("-n", name, "link", "set", cable[1], "up")
        run("-n", name, "link", "set", "lo", "up")
        yield Namespace(name, here, there)
    finally:
        subprocess.run(["ip", "link", "del", cable[0]], check=False, capture_output=True)
        run("netns", "del", name)  # without the line above the cable goes too, but only when the kernel comes to it


@contextlib.contextmanager
def sshd(folder: Path, place: Namespace | None = None, **more: str) -> Iterator[dict[str, object]]:
    """An sshd with keys of its own, on this machine's loopback or in a namespace.

    Args:
        folder: Takes keys, log, and the home of who logs in.
        place: The namespace.
        more: Keys of its configuration, and what they are.

    Yields:
        What a file of machines says of it.
    """
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("OpenSSH's sshd and ssh are needed")
    (folder / "home").mkdir(parents=True)
    for key in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    address = "127.0.0.1" if place is None else place.there
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = _CONFIG.format(port=port, address=address, folder=folder, repository=REPOSITORY)
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in more.items()) + text)
    host = (folder / "host.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[{address}]:{port} {host[0]} {host[1]}\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it locks itself up
    command = [SSHD, "-D", "-f", str(folder / "config"), "-E", str(folder / "log")]
    process = subprocess.Popen(command if place is None else place.command(*command))
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
                break
            time.sleep(0.1)
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        python = str(Path(sys.executable).parent)
        yield {"host": address, "port": port, "user": user, "key_file": str(folder / "key"), "python": python}
    finally:
        process.terminate()
        process.wait()
