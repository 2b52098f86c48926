"""A process that speaks the child contract and misbehaves as told. Standard library only."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
import time


def say(fd: int, kind: str, **fields: object) -> None:
    os.write(fd, json.dumps({"type": kind, **fields}).encode() + b"\n")


def follow_lifeline() -> None:
    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()


def frontend(args: argparse.Namespace, told: dict) -> None:
    if "failed" in told:
        say(args.status_fd, "failed", **told["failed"])
        sys.exit(told["failed"]["exit_code"])
    listener = socket.socket(fileno=args.listen_fd)
    listener.setblocking(True)
    stopping = threading.Event()

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            connection.recv(65536)
            body = str(os.getpid()).encode()
            head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            connection.sendall(head.encode() + body)
            connection.close()

    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    threading.Thread(target=serve, daemon=True).start()
    say(args.status_fd, "ready", facts={})
    while not stopping.wait(0.2):
        say(args.status_fd, "beat", steps=0)
    time.sleep(told.get("drain_s", 0.0))


def engine(args: argparse.Namespace, told: dict) -> None:
    if told.get("ignore_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if told.get("grandchild"):
        os.spawnv(os.P_NOWAIT, "/bin/sleep", ["sleep", "1000"])
    for phase in told.get("phases", ["load"]):
        say(args.status_fd, "phase", name=phase, progress=0.5, limit_s=told.get("phase_limit", 30))
    for line in told.get("print", []):
        print(line, file=sys.stderr, flush=True)
    others = "only_rank" in told and told["only_rank"] != args.rank
    if told.get("hang_in_phase") or (others and told.get("hang_otherwise")):
        time.sleep(1000)
    if "failed" in told:
        say(args.status_fd, "failed", **told["failed"])
        sys.exit(told["failed"]["exit_code"])
    if "exit" in told:
        sys.exit(told["exit"])
    say(args.status_fd, "ready", facts={"pages": 64, "generation": args.generation})
    steps = 0
    while True:
        steps += 1
        say(
            args.status_fd,
            "beat",
            steps=steps,
            limit_s=told.get("beat_limit", 3.0),
            facts=told.get("beat_facts", {}),
        )
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", required=True)
    parser.add_argument("--index", type=int)
    parser.add_argument("--replica", type=int)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--generation", type=int)
    parser.add_argument("--listen-fd", type=int)
    parser.add_argument("--status-fd", type=int, required=True)
    parser.add_argument("--told", type=json.loads, default={})
    args = parser.parse_args()
    follow_lifeline()
    (frontend if args.role == "frontend" else engine)(args, args.told)


if __name__ == "__main__":
    main()
