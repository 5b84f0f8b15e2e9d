"""Build the Containerfile and prove the image: it starts, converts, and stops as an operator wants.

    uv run scripts/check_container.py

Runs the image read-only, without capabilities, as no root, with an env file,
against `ratebridge mock-server`; reads /readyz, looks at the replies, stops it
by SIGTERM and wants exit code 0. Prints the sizes.

The base image is a Debian bookworm made on the spot, so no image registry is
asked. That takes root and Debian's apt-get; where they are lacking it says so
and exits with 0. All that it makes stands in a temporary folder, removed at the
end; the tools (buildah, podman, runc, mmdebstrap) are installed and stay.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

T = TypeVar("T")

ROOT: Final = Path(__file__).resolve().parent.parent
TOOLS: Final = ("buildah", "podman", "runc", "mmdebstrap")
DEBIAN: Final = "bookworm"  # its Python is 3.11, our floor
PACKAGES: Final = "--include=python3,python3-venv,ca-certificates"
SLIM: Final = [f"--dpkgopt=path-exclude=/usr/share/{what}/*" for what in ("doc", "man", "locale")]
CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")  # Debian's place, here and there
BASE, IMAGE, NAME = "localhost/base", "localhost/ratebridge", "ratebridge"
REQUEST: Final = (
    '{"type":"message","id":1,"payload":{"marketId":1,"selectionId":1,"odds":2.2,'
    '"stake":253.67,"currency":"USD","date":"2021-05-18T21:32:42.324Z"}}'
)
EUR: Final = "207.55196"  # of REQUEST, by the ECB's table
REPLIES: Final = 50  # that have to come
HARDENED: Final = (
    *("--network=host", "--read-only", "--read-only-tmpfs=false"),
    *("--cap-drop=all", "--security-opt=no-new-privileges"),
)


class Failed(Exception):
    """Something about the image is not as it has to be."""


class CannotRun(Exception):
    """This machine cannot make and run containers."""


def main() -> None:
    signal.signal(signal.SIGTERM, _leave)
    folder = Path(tempfile.mkdtemp(prefix="ratebridge-container-"))
    podman = Podman(folder)
    try:
        install(*TOOLS, packages=TOOLS)
        make_base(podman)
        build(podman)
        with mock_server(folder) as (uri, log):
            run_and_stop(podman, uri, log)
    except CannotRun as why:
        print(f"container check skipped: {why}")
    except Failed as why:
        print(f"container check failed: {why}", file=sys.stderr)
        sys.exit(1)
    else:
        print("container check passed")
    finally:
        podman.clean_up()
        shutil.rmtree(folder, ignore_errors=True)


def _leave(_number: int, _frame: object) -> NoReturn:
    raise SystemExit("container check stopped")


def run(
    command: Sequence[str | Path],
    *,
    limit: float,
    env: Mapping[str, str] | None = None,
    failure: type[Exception] = Failed,
) -> str:
    """What a command prints. Raises `failure` with the end of its output if it fails or is slow.

    `limit` is in seconds; a slow command is ended with its children.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        ["timeout", "--kill-after=10", f"{limit}", *words],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        told = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        slow = " (it took too long)" * (done.returncode == 124)
        raise failure(f"`{' '.join(words[:3])}` exited with {done.returncode}{slow}:\n{told}")
    return done.stdout


def until(what: str, look: Callable[[], T | None], limit: float) -> T:
    """Look every 10 ms until something is seen. Raises `Failed` after `limit` seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if (seen := look()) is not None:
            return seen
        time.sleep(0.01)
    raise Failed(f"{what}: not within {limit:g} s")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long something took, if it went well."""
    began = time.monotonic()
    yield
    print(f"{what:<50} {time.monotonic() - began:6.1f} s", flush=True)


class Podman:
    """podman and buildah with a storage of their own in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        storage, containers = folder / "storage.conf", folder / "containers.conf"
        storage.write_text(
            f'[storage]\ndriver = "overlay"\n'
            f'graphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n',
            encoding="utf-8",
        )
        # crun, the default, wants more of its surroundings than runc; limits above the
        # machine's own would be refused.
        containers.write_text(
            '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
            f'[engine]\nruntime = "runc"\ntmp_dir = "{folder}/tmp"\nevents_logger = "none"\n',
            encoding="utf-8",
        )
        self.env = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(storage),
            "CONTAINERS_CONF": str(containers),
            "TMPDIR": str(folder),
        }

    def __call__(
        self, *arguments: str | Path, limit: float = 60, failure: type[Exception] = Failed
    ) -> str:
        return run(["podman", *arguments], limit=limit, env=self.env, failure=failure)

    def log(self) -> str:
        """All that the service has written."""
        done = subprocess.run(
            ["podman", "logs", NAME],
            env=self.env,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return done.stdout

    def clean_up(self) -> None:
        """End what still runs, and leave nothing mounted."""
        if not (self.folder / "graph").exists():
            return
        for command in (
            ("podman", "rm", "--all", "--force", "--time=0"),
            ("buildah", "rm", "--all"),
        ):
            try:
                run(command, limit=30, env=self.env)
            except Failed as why:
                print(f"while cleaning up: {why}", file=sys.stderr)
        mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
        ours = [line.split()[1] for line in mounts if f" {self.folder}/" in line]
        for place in reversed(ours):
            subprocess.run(["umount", "--lazy", place], check=False)


def install(*programs: str, packages: Sequence[str]) -> None:
    """Have programs at hand, of Debian's packages. Raises `CannotRun` where that cannot be."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise CannotRun("it takes root on Linux")
    if all(map(shutil.which, programs)):
        return
    if not shutil.which("apt-get"):
        raise CannotRun("there is no apt-get to install its tools with")
    # At run level 1 what is installed is not started as a service.
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=120"]
    run([*apt, "update"], limit=120, env=env, failure=CannotRun)
    command = [*apt, "install", "-y", "--no-install-recommends", *packages]
    run(command, limit=300, env=env, failure=CannotRun)


def make_base(podman: Podman) -> None:
    """A Debian with Python and little else. Raises `CannotRun` if no container of it can run."""
    tar = podman.folder / "base.tar"
    make: list[str | Path] = [
        "mmdebstrap",
        "--quiet",
        "--variant=essential",
        PACKAGES,
        *SLIM,
        DEBIAN,
        tar,
    ]
    run(make, limit=480, env=podman.env, failure=CannotRun)
    podman("import", "--quiet", tar, BASE, limit=120, failure=CannotRun)
    tar.unlink()
    podman("run", "--rm", "--network=host", BASE, "true", failure=CannotRun)


def build(podman: Podman) -> None:
    """Build as an operator would, with this machine's certificates lent to the build."""
    mounts: list[str | Path] = []
    for place, text in _package_index().items():
        mounted = podman.folder / Path(place).name
        mounted.write_text(text, encoding="utf-8")
        mounts += ["--volume", f"{mounted}:{place}:ro"]
    if CERTIFICATES.exists():
        mounts += ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"]
    build = ["buildah", "bud", "--isolation=chroot", *mounts, f"--build-arg=BASE={BASE}"]
    run([*build, "--tag", IMAGE, ROOT], limit=300, env=podman.env)
    inspect = ("image", "inspect", "--format={{.Size}}")
    size, base = (int(podman(*inspect, image)) / 1e6 for image in (IMAGE, BASE))
    print(f"image size: {size:.0f} MB, {size - base:.0f} MB of it on top of the base")


def _package_index() -> dict[str, str]:
    """Settings of pip and uv for the build, by the place where they are mounted (never copied)."""
    pip, uv = f"[global]\ncert = {CERTIFICATES}\n", "system-certs = true\n"
    if index := os.environ.get("PIP_INDEX_URL"):
        pip += f"index-url = {index}\n"
    if index := os.environ.get("UV_DEFAULT_INDEX"):
        uv += f"[[index]]\nurl = {json.dumps(index)}\ndefault = true\n"
    return {"/etc/pip.conf": pip, "/etc/uv/uv.toml": uv}


@contextmanager
def mock_server(folder: Path) -> Iterator[tuple[str, Path]]:
    """The stand-in feed of this checkout, asking one question over and over: its URI, its log."""
    replay, log = folder / "replay.jsonl", folder / "feed.log"
    replay.write_text(REQUEST + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "ratebridge", "mock-server", "--port=0", "--rate=100"]
    with (
        log.open("wb") as out,
        subprocess.Popen([*command, f"--replay={replay}", "--loop"], stdout=out) as process,
    ):
        try:
            listening = until("the stand-in feed listens", lambda: _first(log), 20)
            yield listening["uri"], log
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _first(log: Path) -> Any:
    first, newline, _ = log.read_text(encoding="utf-8").partition("\n")
    return json.loads(first) if newline else None


def run_and_stop(podman: Podman, uri: str, feed_log: Path) -> None:
    """Start the image, see it ready, confined and converting, and stop it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        status = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {
        "CURRENCY_ASSIGNMENT_WS_URI": uri,
        "RATEBRIDGE_PROVIDERS": "ecb",
        "RATEBRIDGE_STATUS_ADDRESS": status,
    }
    env_file = podman.folder / "ratebridge.env"
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    for name, value in settings.items():
        text = re.sub(f"(?m)^{name}=.*$", f"{name}={value}", text)
    env_file.write_text(text, encoding="utf-8")

    podman("run", "--detach", f"--name={NAME}", *HARDENED, "--env-file", env_file, IMAGE)
    try:
        body = until("/readyz answers 200", lambda: ready(f"http://{status}/readyz"), 30)
    except Failed as why:
        raise Failed(f"{why}\n{podman.log()}") from None
    confined(int(json.loads(podman("inspect", NAME))[0]["State"]["Pid"]))
    print(f"ready: {body}")
    until("the stand-in feed gets its replies", lambda: converted(feed_log), 20)
    print(f"{REPLIES} requests and more converted, each to {EUR} EUR as it has to be")

    began = time.monotonic()
    podman("stop", "--time=20", NAME)
    took = time.monotonic() - began
    code = int(podman("inspect", "--format={{.State.ExitCode}}", NAME))
    if code != 0 or took > 15:
        raise Failed(f"stopped with exit code {code} after {took:.1f} s\n{podman.log()}")
    print(f"stopped by SIGTERM in {took:.2f} s with exit code {code}")


def ready(url: str) -> str | None:
    """The body of /readyz once its answer is 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            body: str = answer.read().decode("utf-8").strip()
            return body
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def confined(pid: int) -> None:
    """What the kernel says of the process: no root, no capabilities, no way to a writable root."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    mounts = Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8").splitlines()
    root_options = next(line.split()[5] for line in mounts if line.split()[4] == "/")
    seen = {
        "user": status["Uid"][1],
        "group": status["Gid"][1],
        "capabilities": int(status["CapEff"][0], 16) | int(status["CapPrm"][0], 16),
        "no new privileges": status["NoNewPrivs"][0],
        "root file system": root_options.split(",")[0],
    }
    print("process: " + ", ".join(f"{what} {value}" for what, value in seen.items()))
    if list(seen.values()) != ["10001", "10001", 0, "1", "ro"]:
        raise Failed("the process is not confined as it has to be")


def converted(feed_log: Path) -> int | None:
    """How many replies the feed has got, when they are enough. Raises `Failed` at a wrong one."""
    lines = feed_log.read_text(encoding="utf-8").splitlines(keepends=True)
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    replies = [event["reply"] for event in events if event["event"] == "feed.reply"]
    for reply in replies:
        if f'"stake":{EUR},"currency":"EUR"' not in reply:
            raise Failed(f"a wrong reply: {reply}")
    return len(replies) if len(replies) >= REPLIES else None


if __name__ == "__main__":
    main()
