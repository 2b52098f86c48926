"""Every code of an error or an alert: what it means, why it comes and what cures it.

The message that carries a code says the particulars; this is what stays true of all of them.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    what: str
    why: str
    fix: str


CATALOGUE: dict[str, Entry] = {
    "APL-000": Entry(
        "a command failed",
        "none of the more particular codes fits",
        "read the message; `-vv` prints where it came from",
    ),
    "APL-ALR-001": Entry(
        "an engine was started again",
        "its process died or was silent for too long; streams went on from what was emitted",
        "appliance logs --level error",
    ),
    "APL-ALR-002": Entry(
        "the KV cache is nearly full",
        "the live requests hold almost every page, so long ones wait",
        "a smaller --context, more GPUs, or fewer requests at once",
    ),
    "APL-ALR-003": Entry(
        "a GPU is slowed down",
        "it is hot, or its power supply gives too little",
        "look at its cooling and power; nvidia-smi -q -d PERFORMANCE",
    ),
    "APL-ALR-004": Entry(
        "running requests were put back",
        "they grew longer than the pages that were left",
        "a smaller --set schedule.max_running, or a higher schedule.conservativeness",
    ),
    "APL-ALR-005": Entry(
        "requests wait long before they are computed",
        "more come than the GPUs can serve",
        "more GPUs or replicas, or fewer clients at once",
    ),
    "APL-ALR-006": Entry(
        "requests got a 5xx",
        "an engine or a frontend failed them",
        "appliance logs --level error",
    ),
    "APL-ALR-007": Entry(
        "a disk is nearly full",
        "models and logs share it",
        "appliance cache df; appliance rm MODEL; appliance cache prune",
    ),
    "APL-ALR-008": Entry(
        "a GPU has memory errors that it could not correct",
        "its memory is failing",
        "reset the GPU when it is idle; replace it when they come again",
    ),
    "APL-ALR-009": Entry(
        "an engine is late with its sign of life",
        "a step takes long, or the process hangs",
        "nothing: it is started again when its time is over, and streams go on",
    ),
    "APL-ALR-010": Entry(
        "a frontend's figures are old",
        "its process is busy or gone",
        "appliance status; look at the load of the CPUs",
    ),
    "APL-ALR-011": Entry(
        "a GPU met a critical error (Xid)",
        "a program's fault, failing memory, a link or the bus; the number tells which",
        "what the alert says of that number; NVIDIA's list of Xid errors has the rest",
    ),
    "APL-ALR-012": Entry(
        "many requests are refused",
        "clients send no valid key, name a model that is not served, or ask too often",
        "what the alert says of the commonest cause; appliance logs --level warning",
    ),
    "APL-ALR-013": Entry(
        "clients hit the context limit",
        "prompts are longer than the context, or answers go on until its end",
        "a longer --context where it fits the GPUs, or shorter prompts",
    ),
    "APL-ALR-014": Entry(
        "the log file cannot be written",
        "its disk is full, or does not answer",
        "df and dmesg say which; the run goes on, and appliance logs still has the newest lines",
    ),
    "APL-ALR-015": Entry(
        "two GPUs of one model exchange slowly",
        "they reach one another through the host or a slot that is narrow, and the others wait",
        "nvidia-smi topo -m and topo -p2p r; look at IOMMU, ACS and the PCIe slots",
    ),
    "APL-ALR-016": Entry(
        "an engine computes by plain torch",
        "its kernels could not be compiled here: a compiler is missing, or failed",
        "appliance doctor names what to install; then appliance restart",
    ),
    "APL-AUT-001": Entry(
        "the hub keeps this model behind a gate",
        "its terms have not been accepted, or no token says who asks",
        "accept the terms on the model's page, then set HF_TOKEN or MODELSCOPE_API_TOKEN",
    ),
    "APL-AUT-002": Entry(
        "the hub refuses the token",
        "it is wrong, has expired, or may not read this model",
        "make a new token on the hub's page of settings and set it",
    ),
    "APL-AUT-003": Entry(
        "a server refuses the API key",
        "none was sent, it was revoked, or it is of another server",
        "export APPLIANCE_API_KEY=sk-…; appliance key add NAME makes one on the server's machine",
    ),
    "APL-BSY-001": Entry(
        "the port is taken",
        "another process listens on it; the message names it",
        "another --port (0: any that is free), or stop that process",
    ),
    "APL-BSY-002": Entry(
        "a run of this name is up",
        "each run has a name of its own, `default` when none is given",
        "appliance down NAME, or appliance up --name OTHER --port 0",
    ),
    "APL-BSY-003": Entry(
        "a file of yours is there already",
        "it would be lost",
        "another name, or --yes to replace it",
    ),
    "APL-BSY-004": Entry(
        "the Unix socket is taken",
        "another process listens on that path; the message names it",
        "another --uds, or appliance down if it is a run of yours",
    ),
    "APL-BSY-010": Entry(
        "the model is being served",
        "files in use are never removed",
        "appliance down RUN, then remove it",
    ),
    "APL-BSY-011": Entry(
        "the model is being pulled",
        "only one process at a time changes a model's files",
        "wait for the pull, or stop it with Ctrl-C; it resumes",
    ),
    "APL-BUG-001": Entry(
        "something that should not happen",
        "a fault of ours",
        "report it with the traceback, whose place the message names",
    ),
    "APL-DSK-001": Entry(
        "a folder cannot be written",
        "it belongs to somebody else, or is mounted read-only",
        "check its owner and mount, or choose another: HF_HOME, MODELSCOPE_CACHE",
    ),
    "APL-DSK-002": Entry(
        "a model cannot be removed",
        "its folder belongs to somebody else",
        "remove it as its owner",
    ),
    "APL-DSK-003": Entry(
        "a path is closed to the user that a unit would run as",
        "its owner lets others neither in nor read; a model that root has pulled is the usual case",
        "the setfacl that the message prints, as the owner of the path",
    ),
    "APL-ENG-001": Entry(
        "an engine did not start, or failed",
        "the message is its first exception",
        "appliance logs --component engine --level warning",
    ),
    "APL-ENG-002": Entry(
        "a process ended",
        "a signal or an exit that nobody asked for; memory that ran out is the usual cause",
        "appliance logs; dmesg | tail, for the kernel's word",
    ),
    "APL-ENG-003": Entry(
        "a process gave no sign of life",
        "its loop hangs: a driver that does not answer, or a rank that waits for another",
        "appliance logs --component engine; appliance doctor",
    ),
    "APL-ENG-004": Entry(
        "a process died too often",
        "each new start ends in the same way, so no more are tried",
        "cure what the message names, then appliance up",
    ),
    "APL-FIT-001": Entry(
        "the model does not fit",
        "weights and workspace need more memory than there is; see the memory line of a dry run",
        "what the message computes: more GPUs, less workspace, or another model",
    ),
    "APL-FIT-003": Entry(
        "the context that was asked for does not fit",
        "each token of context takes memory on every GPU, and the weights come first",
        "the longest --context that fits, which the message names, or more GPUs",
    ),
    "APL-FIT-010": Entry(
        "the disk is full",
        "the download needs more than is free",
        "free some space and run the same command again; it resumes",
    ),
    "APL-FIT-011": Entry(
        "the disk is too small for this model",
        "the plan counts every byte before the first is fetched",
        "appliance cache prune; appliance rm MODEL; or a larger disk with HF_HOME",
    ),
    "APL-HW-001": Entry(
        "the hardware cannot do what was asked",
        "no GPU, a driver that is too old, or one that does not answer",
        "appliance doctor",
    ),
    "APL-HW-002": Entry(
        "the profile needs GPUs that cannot be seen",
        "there are fewer, CUDA_VISIBLE_DEVICES hides them, or the driver does not answer",
        "--profile cpu, or appliance doctor",
    ),
    "APL-HW-003": Entry(
        "more GPUs are asked for than can be seen",
        "each engine takes --tp GPUs, and there may be several engines",
        "a smaller --tp or engine.replicas",
    ),
    "APL-HW-004": Entry(
        "this machine has no systemd",
        "a service is a unit of systemd",
        "appliance service install --print for another machine; appliance up -d here",
    ),
    "APL-HW-005": Entry(
        "the machine cannot compute with its GPUs",
        "the driver is older than torch's CUDA needs, torch has none, or /dev/shm is too small",
        "appliance doctor names what to install or to add",
    ),
    "APL-HW-006": Entry(
        "two GPUs of one model do not reach one another",
        "an IOMMU or ACS turns direct copies away, peers are not there in a virtual machine, or "
        "/dev/shm is too small",
        "NCCL_P2P_DISABLE=1 appliance up …; nvidia-smi topo -p2p r shows the pairs",
    ),
    "APL-HW-007": Entry(
        "systemd does not answer",
        "nobody is logged in for a user's, or the machine was not started by it",
        "loginctl enable-linger, and log in again; appliance up -d runs without a service",
    ),
    "APL-HW-008": Entry(
        "engine.compile is on, and torch.compile cannot compile here",
        "it needs a C++ compiler on a CPU, and a C compiler with NVIDIA GPUs",
        "apt install g++ gcc, or leave out engine.compile",
    ),
    "APL-INT-001": Entry(
        "a file has other bytes than the hub says",
        "something on the way changed it, or the hub serves another file",
        "pull again later, or from another --source or --endpoint",
    ),
    "APL-INT-002": Entry(
        "the hub, or a model's index, says what an honest one does not",
        "a path outside of the folder, or no commit: it is no hub, or means harm",
        "check --endpoint; do not use this model",
    ),
    "APL-INT-003": Entry(
        "the disk did not keep what was written",
        "it is failing, or was taken away",
        "check the disk, then pull again",
    ),
    "APL-INT-004": Entry(
        "a model's file cannot be read",
        "it is damaged or cut short",
        "appliance cache verify MODEL; appliance rm MODEL, then pull it again",
    ),
    "APL-IPC-001": Entry(
        "processes do not understand one another",
        "they are of different versions",
        "appliance down, then appliance up",
    ),
    "APL-NET-001": Entry(
        "a download does not go on",
        "the network or the hub fails again and again",
        "run the same command again; it resumes",
    ),
    "APL-NET-002": Entry(
        "the hub cannot be asked",
        "no network, a proxy, or the hub is down",
        "appliance doctor --network; run the same command again",
    ),
    "APL-NET-003": Entry(
        "the network is switched off",
        "HF_HUB_OFFLINE or its like is set, and the model is not whole on this disk",
        "unset the variable for this command",
    ),
    "APL-NET-004": Entry(
        "what answers is no hub",
        "a login page, a proxy, or a wrong --endpoint",
        "check --endpoint and whether the network wants a login",
    ),
    "APL-NET-005": Entry(
        "a server does not answer as it should",
        "it is not up, its address is wrong, or it is a server of another kind",
        "check the URL; appliance status on the server's machine",
    ),
    "APL-NOT-001": Entry(
        "the model is not on this disk",
        "up never fetches anything; or its name is misspelt",
        "appliance pull MODEL; appliance list",
    ),
    "APL-NOT-002": Entry(
        "the hub has no such model",
        "the name is misspelt, or it is private",
        "check the name on the hub's page; set HF_TOKEN for a private one",
    ),
    "APL-NOT-003": Entry(
        "the model has no such revision or file",
        "the branch, tag or commit is not there, or the model has just changed",
        "leave --revision out, or name one that the message lists",
    ),
    "APL-NOT-004": Entry(
        "the architecture is not known",
        "the engine serves the families it knows, and runs no code from a repository",
        "choose a model of an architecture that the message lists",
    ),
    "APL-NOT-005": Entry(
        "no file of the model matches",
        "--include and --exclude leave nothing",
        "appliance pull MODEL --dry-run lists the files",
    ),
    "APL-NOT-006": Entry(
        "the model has no weights that can be served",
        "only safetensors are read: other formats can run code, or are of other engines",
        "look for a safetensors version of the model",
    ),
    "APL-NOT-007": Entry(
        "a folder is no complete model",
        "config.json or weights are missing",
        "give a folder that has both, or a name to pull",
    ),
    "APL-NOT-008": Entry(
        "the model is on this disk only in part",
        "a pull was stopped",
        "run the pull again; it resumes",
    ),
    "APL-NOT-009": Entry(
        "the embedded model is not here",
        "the installation is not whole",
        "install again, or name a model",
    ),
    "APL-NOT-011": Entry(
        "no run has this name",
        "it was never started by this user, or the name is misspelt",
        "appliance ps -a",
    ),
    "APL-NOT-012": Entry(
        "no profile has this name",
        "it is misspelt, or no class of GPU has it",
        "appliance profile list",
    ),
    "APL-NOT-013": Entry(
        "no profile is for this machine",
        "the profiles that ship have been taken away",
        "name one with --profile, or install again",
    ),
    "APL-NOT-014": Entry(
        "the run has no plan",
        "its folder was changed by hand",
        "appliance down, then appliance up",
    ),
    "APL-NOT-015": Entry(
        "no live request has this id",
        "it has ended already",
        "appliance top shows those that live",
    ),
    "APL-NOT-016": Entry(
        "no error or alert has this code",
        "it is misspelt, or of another version",
        "appliance explain lists the codes",
    ),
    "APL-NOT-017": Entry(
        "no unit is installed for this run",
        "it was never installed by this user, or under another name",
        "appliance service install",
    ),
    "APL-NOT-018": Entry(
        "a file that was named cannot be read",
        "its path is misspelt, or it is closed to this user",
        "the path of a file that can be read",
    ),
    "APL-NOT-019": Entry(
        "no API key has this name",
        "it was revoked, or is misspelt",
        "appliance key list",
    ),
    "APL-NOT-020": Entry(
        "a measurement has no such row",
        "rows are named when they are measured; the message lists those there are",
        "one of the rows that the message lists",
    ),
    "APL-NOT-025": Entry(
        "no ended request of this id is in the request log",
        "it is still running, is older than the files that are kept, or the log was off",
        "appliance logs --follow shows live ones; appliance up --request-log on|content",
    ),
    "APL-RUN-001": Entry(
        "nothing runs under this name",
        "it was not started, or it has ended",
        "appliance up; appliance logs NAME tells how it ended",
    ),
    "APL-RUN-002": Entry(
        "the supervisor does not answer",
        "the machine is very busy, or the process is stopped",
        "appliance logs NAME; appliance down NAME",
    ),
    "APL-RUN-003": Entry(
        "the supervisor's answer is not understood",
        "it is of another version than this command",
        "appliance down, then appliance up",
    ),
    "APL-RUN-004": Entry(
        "the run is not ready yet",
        "--wait was shorter than the start takes",
        "appliance status shows how far it is",
    ),
    "APL-USE-001": Entry(
        "the command was not given rightly",
        "the message names the word that is wrong",
        "the same command with --help",
    ),
    "APL-USE-002": Entry(
        "the name of a Unix socket is too long",
        "the kernel takes 107 bytes, of the folder of runs with what lies in it, or of --uds",
        "point APPLIANCE_RUNTIME_DIR at a folder with a shorter name, or give a shorter --uds",
    ),
    "APL-USE-005": Entry(
        "the checkpoint is quantized in a way that is not served",
        "the message names it and those that are",
        "pull the unquantized checkpoint of the model",
    ),
    "APL-USE-010": Entry(
        "this is no name of a model",
        "names are ORG/NAME or ORG/NAME@REVISION",
        "copy the name from the model's page",
    ),
    "APL-USE-011": Entry(
        "the ModelScope client is not installed",
        "it is an extra of the package",
        "pip install 'appliance[modelscope]'",
    ),
    "APL-USE-012": Entry(
        "a file is not what it should be",
        "it is no TOML, or no profile, or closed to this user",
        "correct the line that the message names; chmod u+r on the file",
    ),
    "APL-USE-013": Entry(
        "a profile sets what belongs to a run",
        "a profile is for machines: it names no model and no address",
        "remove the line; give it to appliance up",
    ),
    "APL-USE-014": Entry(
        "there is no such setting",
        "its name is misspelt, in a file, a variable or --set",
        "appliance config show lists every setting",
    ),
    "APL-USE-015": Entry(
        "no GPU is known by this word",
        "--assume-gpus knows a table of GPUs",
        "one of the words that the message lists, as h100x8",
    ),
    "APL-USE-016": Entry(
        "a setting cannot have this value",
        "it is of another kind, or out of range",
        "appliance config show prints the value that would be chosen",
    ),
    "APL-USE-020": Entry(
        "the file of API keys cannot be read",
        "it is not there, or belongs to somebody else",
        "appliance key add NAME",
    ),
    "APL-USE-021": Entry(
        "others can write the file of API keys",
        "anybody could add a key",
        "chmod 600 on the file",
    ),
    "APL-USE-022": Entry(
        "the file of API keys is not understood",
        "it was changed by hand or damaged",
        "restore it from a copy, or remove it and add the keys again",
    ),
    "APL-USE-023": Entry(
        "this cannot be the name of a key",
        "names are 1 to 40 letters, digits, dots, dashes and underscores",
        "another name",
    ),
    "APL-USE-024": Entry(
        "there is a key of this name",
        "a key is told only once, so it is not told again",
        "appliance key revoke NAME, then add it again",
    ),
    "APL-USE-025": Entry(
        "there are as many keys as there can be",
        "each has a place in the counters",
        "appliance key revoke NAME for one that is no longer used",
    ),
    "APL-USE-026": Entry(
        "others would reach the server without a key",
        "it would listen on an address that is not this machine's alone",
        "appliance key add NAME, --host 127.0.0.1, or --no-auth",
    ),
    "APL-USE-027": Entry(
        "the file of API keys is named by a path that depends on the folder one is in",
        "the server's processes work in another folder",
        "its whole path",
    ),
    "APL-USE-033": Entry(
        "an amount is not understood",
        "a number of bytes or a length of time has no unit, or one that means two things",
        "write such as 100MB, 40GiB, 500ms, 10m or 30d",
    ),
    "APL-USE-034": Entry(
        "a file that holds a secret cannot be used",
        "it is not there, holds no text, or others may read it",
        "chmod 600 FILE",
    ),
    "APL-USE-035": Entry(
        "a model's config.json makes no sense",
        "a value is of the wrong kind or size, or one is lacking",
        "pull the model again; if it stays so, its repository is at fault",
    ),
    "APL-USE-040": Entry(
        "the request log does not hold this request's body",
        "bodies are kept only where content was asked for, and not the very long ones",
        "appliance up --request-log content, and send the request again",
    ),
    "APL-USE-041": Entry(
        "a client's file is not changed",
        "it is written in a way that our lines cannot be put into without harm",
        "appliance connect CLIENT --print shows what to put there by hand",
    ),
    "APL-USE-042": Entry(
        "there can be no Unix socket on that path",
        "its folder is not there or closed to this user, or a file that is no socket has the name",
        "a path with --uds in a folder that this user may write to",
    ),
    "APL-USE-043": Entry(
        "a run's settings cannot be read anew",
        "what it was started with is not in its folder, for another version started it",
        "appliance down, then appliance up; reload knows the run from then on",
    ),
    "APL-USE-044": Entry(
        "a server refuses what was asked",
        "it is longer than the context, out of range, or names what is not served there",
        "what the message says of it; appliance config show has the run's limits",
    ),
    "APL-USE-045": Entry(
        "a chat template cannot be used",
        "its file is not there, is empty, or is no Jinja; the message names the line",
        "correct the file, or leave the option out: the model's own template is taken then",
    ),
}
