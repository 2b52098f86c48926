"""appliance logs: of a live run from its supervisor, of an ended one from its file; a request's
line of the request log, and the curl that asks for it again."""

from __future__ import annotations

import datetime
import re

import click

from appliance import paths
from appliance.cli import ended_requests
from appliance.cli.lines import log_data
from appliance.cli.output import Output
from appliance.cli.prepare import run_folder
from appliance.client import Client
from appliance.errors import NotRunningError, UsageError
from appliance.supervisor.logs import Filter, read_file

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@click.command()
@click.argument("name", default="default")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines.")
@click.option("-n", "--lines", type=click.IntRange(0), default=200, help="How many lines.")
@click.option("--component", default="", help="supervisor, frontend, engine, engine-0, engine-0.1")
@click.option(
    "--level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="That and worse.",
)
@click.option("--since", metavar="TIME", help="Not before: 10m ago, 14:30, 2026-11-20T14:30:00.")
@click.option("--until", metavar="TIME", help="Not after.")
@click.option("--request", metavar="ID", help="Lines that name this request, and what it took.")
@click.option("--curl", is_flag=True, help="With --request: a curl that asks for it again.")
@click.option("--grep", multiple=True, metavar="TEXT", help="Lines that hold this text.")
@click.pass_obj
def logs(
    out: Output,
    /,
    name: str,
    follow: bool,
    lines: int,
    component: str,
    level: str | None,
    since: str | None,
    until: str | None,
    request: str | None,
    curl: bool,
    grep: tuple[str, ...],
) -> None:
    """What the processes of run NAME have said."""
    if curl:
        _tell_curl(out, name, request)
        return
    requests = ended_requests.find(name, request) if request and not follow else []
    folder = paths.runtime_dir() / name if requests else run_folder(name)
    client = Client(paths.control_socket(folder))
    begin, end = moment(since, "--since"), moment(until, "--until")
    holds = (*grep, *([request] if request else []))
    path, wanted = paths.supervisor_log(name), Filter(component, level or "", begin, end, holds)
    try:
        if follow:
            for line in client.follow_logs(
                lines, component, level or "", since=begin, until=end, holds=holds
            ):
                out.result(line, log_data(line))
            return
        found = client.logs(
            lines, component, level or "", since=begin, until=end, holds=holds
        ).splitlines()
        if begin and len(found) < lines:  # the supervisor remembers the newest lines only
            older = read_file(path, lines, wanted)
            found = older if len(older) > len(found) else found
    except NotRunningError:
        if follow:
            raise
        found = read_file(path, lines, wanted)
        if not found and not requests and not path.exists():
            raise
        out.note(f"The run has ended; from {path}:")
    for line in found:
        out.result(line, log_data(line))
    for row in requests:
        out.result(ended_requests.text_of(row), {"schema": "appliance.request/1", "request": row})
    if request and not requests and not follow:
        out.note(f"No request '{request}' that has ended is in the request log of '{name}'.")


def _tell_curl(out: Output, name: str, request: str | None) -> None:
    if not request:
        raise UsageError("--curl is of one request.", f"appliance logs {name} --request ID --curl")
    row = ended_requests.replayable(name, request)
    try:
        url = Client(paths.control_socket(paths.runtime_dir() / name), timeout=3.0).status().url
    except NotRunningError:
        url = ""
        out.note("The run has ended; the address is where `appliance up` serves by default.")
    command = ended_requests.curl_of(row, url or "http://127.0.0.1:8000")
    if ended_requests.REDACTED in command:
        out.warn("what was a secret in the body is not in the log: put it in again")
    out.result(command, {"schema": "appliance.curl/1", "id": row["id"], "curl": command})


def moment(text: str | None, option: str) -> str:
    """`10m` (ago), `14:30` (today, here), or an ISO time -> the time that log lines begin with, in
    UTC; empty for None."""
    if text is None:
        return ""
    now = datetime.datetime.now().astimezone()
    ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])(?: ago)?", text.strip())
    clock = re.fullmatch(r"(\d{1,2}):(\d\d)(?::(\d\d))?", text.strip())
    try:
        if ago:
            at = now - datetime.timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        elif clock:
            hour, minute, second = (int(part or 0) for part in clock.groups())
            at = now.replace(hour=hour, minute=minute, second=second, microsecond=0)
        else:
            at = datetime.datetime.fromisoformat(text.strip())
            at = at if at.tzinfo else at.astimezone()
    except (ValueError, OverflowError) as e:
        raise UsageError(
            f"{option}: '{text}' is no time.", "Write 10m, 14:30, or 2026-11-20T14:30:00."
        ) from e
    utc = at.astimezone(datetime.UTC)
    return utc.strftime("%Y-%m-%dT%H:%M:%S.") + f"{utc.microsecond // 1000:03d}"
