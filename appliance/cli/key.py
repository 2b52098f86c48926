"""appliance key: the API keys of this user's runs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from appliance import keys, paths
from appliance.cli.late import LateGroup
from appliance.cli.output import Output, table


@click.group(cls=LateGroup)
def key() -> None:
    """API keys: who may call."""


_FILE = click.option(
    "--file", "path", type=click.Path(path_type=Path), help="Another file than the user's own."
)


@key.command()
@click.argument("name")
@click.option("--requests-per-minute", type=click.IntRange(1), help="Requests it may send.")
@click.option("--tokens-in-flight", type=click.IntRange(1), help="Tokens its requests may hold.")
@click.option("--admin", is_flag=True, help="It may read log, settings and events over HTTP.")
@_FILE
@click.pass_obj
def add(
    out: Output,
    /,
    name: str,
    requests_per_minute: int | None,
    tokens_in_flight: int | None,
    admin: bool,
    path: Path | None,
) -> None:
    """Make a key called NAME and print it, this once."""
    place = path or paths.keys_file()
    first = not place.exists()
    made = keys.add_key(
        place,
        name,
        requests_per_minute=requests_per_minute or 0,
        tokens_in_flight=tokens_in_flight or 0,
        admin=admin,
    )
    out.result(made, {"schema": "appliance.key/1", "name": name, "key": made, "file": str(place)})
    out.note("Keep it: it is shown this once. Clients send it as their API key.")
    if path is not None:
        out.note(f"Serve with it: appliance up --set serve.keys_file={place.resolve()}")
    elif first:
        out.note("The next `appliance up` asks every client for a key.")


@key.command("list")
@_FILE
@click.pass_obj
def list_(out: Output, /, path: Path | None) -> None:
    """Every key's name and limits; never the key."""
    place = path or paths.keys_file()
    known = keys.read_keys(place) if place.exists() else ()
    rows = [("NAME", "MADE", "REQUESTS/MIN", "TOKENS IN FLIGHT", "ADMIN")]
    for k in known:
        made = datetime.fromtimestamp(k.created, UTC).strftime("%Y-%m-%d %H:%M")
        limits = _limit(k.requests_per_minute), _limit(k.tokens_in_flight)
        rows.append((k.name, made, *limits, "yes" if k.admin else "no"))
    data = [msgspec.structs.asdict(k) for k in known]
    for one in data:
        del one["sha256"], one["slot"]
        one["created"] = datetime.fromtimestamp(one["created"], UTC).isoformat()
    text = table(rows, right=(2, 3)) if known else "No keys. `appliance key add NAME` makes one."
    out.result(text, {"schema": "appliance.keys/1", "file": str(place), "keys": data})


@key.command()
@click.argument("name")
@_FILE
@click.pass_obj
def revoke(out: Output, /, name: str, path: Path | None) -> None:
    """End the key NAME: what runs refuses it at once."""
    place = path or paths.keys_file()
    keys.revoke_key(place, name)
    out.result(f"revoked {name}", {"schema": "appliance.key/1", "name": name, "revoked": True})


def _limit(value: int) -> str:
    return f"{value:,}" if value else "none"
