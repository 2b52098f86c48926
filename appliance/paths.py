"""Every folder and file name the appliance owns, one function each.

Nothing is created here except by ``run_dir`` and ``private_dir``.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import platformdirs

from appliance.errors import ApplianceError, UsageError

_APP = "appliance"
SOCKET_NAME = 107
"""Bytes of a Unix socket's path on Linux."""
MACHINE = {
    "CONFIG": Path("/etc/appliance"),
    "STATE": Path("/var/lib/appliance"),
    "CACHE": Path("/var/cache/appliance"),
    "LOGS": Path("/var/log/appliance"),
    "RUNTIME": Path("/run/appliance"),
}
"""Folders of a service of the whole machine. Its user's commands find them without being told."""
_VARIABLES = {
    "CONFIG": ("APPLIANCE_CONFIG_DIR", "CONFIGURATION_DIRECTORY"),
    "STATE": ("APPLIANCE_STATE_DIR", "STATE_DIRECTORY"),
    "CACHE": ("APPLIANCE_CACHE_DIR", "CACHE_DIRECTORY"),
    "LOGS": ("APPLIANCE_LOGS_DIR", "LOGS_DIRECTORY"),
    "RUNTIME": ("APPLIANCE_RUNTIME_DIR", "RUNTIME_DIRECTORY"),
}
"""Where a folder is told: our own variable, and that in which systemd tells a unit the folder that
it made for it."""


def config_dir() -> Path:
    return _told("CONFIG") or Path(platformdirs.user_config_dir(_APP))


def state_dir() -> Path:
    """Run records, download state, batches."""
    return _told("STATE") or Path(platformdirs.user_state_dir(_APP))


def logs_dir() -> Path:
    """Logs of runs and their requests, rotated."""
    return _told("LOGS") or state_dir() / "logs"


def cache_dir() -> Path:
    """Compiled kernels and other things that can be made again."""
    return _told("CACHE") or Path(platformdirs.user_cache_dir(_APP))


def kernel_variables() -> dict[str, str]:
    """For processes of ours: where compilers keep what they made, unless it was said otherwise."""
    own = {
        "TRITON_CACHE_DIR": cache_dir() / "triton",
        "FLASHINFER_WORKSPACE_BASE": cache_dir(),
        "CUDA_CACHE_PATH": cache_dir() / "cuda",
        "TORCHINDUCTOR_CACHE_DIR": cache_dir() / "inductor",
    }
    return {name: os.environ.get(name) or str(folder) for name, folder in own.items()}


def _told(kind: str) -> Path | None:
    """A folder by our own variable, by systemd's, or because this user is the machine's service."""
    ours, systemds = _VARIABLES[kind]
    given = os.environ.get(ours)
    if given:
        return Path(given)
    if kind == "LOGS" and os.environ.get("APPLIANCE_STATE_DIR"):
        return None
    made = Path(os.environ.get(systemds, "").partition(":")[0])
    if made.name.startswith(_APP):  # another unit's, which calls us, are not ours
        return made
    return MACHINE[kind] if _serves_machine() else None


def _serves_machine() -> bool:
    try:
        return os.getuid() != 0 and MACHINE["STATE"].stat().st_uid == os.getuid()
    except OSError:
        return False


def another_serves_machine() -> bool:
    """Whether a unit of the machine has been started whose user is not this one."""
    try:
        return MACHINE["RUNTIME"].stat().st_uid != os.getuid()
    except OSError:
        return False


def runtime_dir() -> Path:
    """Sockets, locks and status files; private to the user, gone after a reboot."""
    told = _told("RUNTIME")
    if told is not None:
        return told
    xdg = os.environ.get("XDG_RUNTIME_DIR")
    if xdg and Path(xdg).is_dir():
        return Path(xdg) / _APP
    return Path(tempfile.gettempdir()) / f"{_APP}-{os.getuid()}"


def private_dir(path: Path) -> Path:
    """Makes a folder only this user can enter; refuses one that belongs to somebody else."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    st = path.lstat()
    if not stat.S_ISDIR(st.st_mode) or st.st_uid != os.getuid():
        raise ApplianceError(
            f"{path} is not a folder owned by this user.",
            "Remove it, or point APPLIANCE_RUNTIME_DIR at a folder of your own.",
        )
    if st.st_mode & 0o077:
        path.chmod(0o700)
    return path


def responses_dir() -> Path:
    """Answers that /v1/responses keeps for the turns that follow them."""
    return state_dir() / "responses"


def run_dir(name: str) -> Path:
    """The folder of one run: its sockets, config, lock and status files. Created 0700.

    UsageError when its sockets' names would be longer than the kernel takes.
    """
    folder = runtime_dir() / name
    spare = SOCKET_NAME - len(os.fsencode(folder)) - len("/engine-999.sock")
    if spare < 0:
        raise UsageError(
            f"{folder} is {-spare} bytes too long for the names of Unix sockets.",
            "Point APPLIANCE_RUNTIME_DIR at a folder with a shorter name.",
            code="APL-USE-002",
        )
    private_dir(folder.parent)
    return private_dir(folder)


def lock_file(run: Path) -> Path:
    return run / "lock"


def config_file(run: Path) -> Path:
    """The resolved RuntimeConfig that every process of the run reads (JSON)."""
    return run / "config.json"


def plan_file(run: Path) -> Path:
    """Every resolved value with its source and reason (JSON), for `config show` and `top`."""
    return run / "plan.json"


def given_file(run: Path) -> Path:
    """What the run was started with (JSON), from which its settings are composed anew."""
    return run / "given.json"


def control_socket(run: Path) -> Path:
    return run / "control.sock"


def control_sockets() -> list[Path]:
    """Of every run of this user that has one; nobody may listen on it any more."""
    return sorted(runtime_dir().glob(f"*/{control_socket(Path()).name}"))


def engine_socket(run: Path, replica: int) -> Path:
    """Unix socket on which an engine's rank 0 accepts the frontends."""
    return run / f"engine-{replica}.sock"


def ring_file(run: Path, replica: int) -> Path:
    """Shared memory in which rank 0 of an engine gives its steps to the other ranks."""
    return run / f"ranks-{replica}.ring"


def rendezvous_file(run: Path, replica: int) -> Path:
    """torch.distributed FileStore of one engine's ranks."""
    return run / f"ranks-{replica}.store"


def run_state(run: Path) -> Path:
    """RunState as the supervisor last knew it (JSON), for the frontends."""
    return run / "state.json"


def engine_pids(run: Path) -> Path:
    """Engine processes whose memory the driver may still have to take back (JSON)."""
    return run / "engines.json"


def cancels(run: Path) -> Path:
    """Ids of requests that an operator has cancelled (JSON), for the frontends."""
    return run / "cancels.json"


def aborts(run: Path, frontend: int) -> Path:
    """Requests that callers told one frontend to end, for the others (JSON)."""
    return run / f"aborts-{frontend}.json"


def frontend_snapshot(run: Path, index: int) -> Path:
    """A frontend's latest FrontendSnapshot (JSON), replaced atomically."""
    return run / f"frontend-{index}.json"


def key_usage(run: Path) -> Path:
    """What each API key uses, shared by the frontends of a run (memory-mapped)."""
    return run / "keys.usage"


def connections(run: Path) -> Path:
    """How many connections each frontend of a run holds (memory-mapped)."""
    return run / "connections"


def last_pull() -> Path:
    """How fast the last large download was (JSON)."""
    return state_dir() / "last-pull.json"


def start_times() -> Path:
    """What the phases of earlier starts took here (JSON)."""
    return state_dir() / "start-times.json"


def supervisor_metrics(run: Path) -> Path:
    """What the supervisor counts and measures, for the frontends' /metrics (JSON)."""
    return run / "metrics.json"


def supervisor_log(name: str) -> Path:
    return logs_dir() / f"{name}.log"


def request_log(name: str, frontend: int) -> Path:
    """Requests that ended in one frontend of a run, a JSON line each; rotated like the log."""
    return logs_dir() / f"{name}.requests-{frontend}.jsonl"


def keys_file() -> Path:
    """The API keys of this user's runs, as digests (JSON, 0600)."""
    return config_dir() / "keys.json"


def run_keys(run: Path) -> Path:
    """Digests of the keys that one run was given in a file of its own (JSON, 0600)."""
    return run / "keys.json"


def batches_dir(name: str) -> Path:
    """Uploaded files, batches and their answers of a run; they outlive it."""
    return state_dir() / "batches" / name


def trace_file(name: str, replica: int) -> Path:
    """A torch trace of some steps of a run's engine (Chrome's format, gzip)."""
    return state_dir() / "traces" / f"{name}-{replica}.json.gz"


def bench_record(name: str) -> Path:
    """Where `bench --save NAME` keeps its lines."""
    return state_dir() / "bench" / f"{name}.jsonl"


def user_profiles() -> Path:
    return config_dir() / "profiles"


def shipped_profiles() -> Path:
    """Profiles that come with the appliance: in the wheel, or in the checkout."""
    inside = Path(__file__).parent / "profiles" / "shipped"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "profiles"


def default_model() -> Path:
    """The small model that is served on a machine that has nothing else."""
    return Path(__file__).parent / "default_model"
