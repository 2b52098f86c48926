"""`appliance pull`: says what it will do, does it, says what was done."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import click

from appliance.cli import rate as rates
from appliance.cli.amounts import byte_count
from appliance.cli.bars import Drawing, Style, drawing
from appliance.cli.output import Output, duration, gigabytes
from appliance.errors import ABSENT, DoesNotFitError, NotFoundError, UsageError
from appliance.hub import local
from appliance.hub.plan import Plan, SourceChoice, Want, already_here, check_disk, make_plan
from appliance.hub.pull import Progress, Pulled, carry_out
from appliance.hub.source import Patience, offline_variable
from appliance.profiles import store
from appliance.profiles.pick import verdict
from appliance.profiles.schema import Profile


@click.command("pull")
@click.argument("model")
@click.option(
    "--source",
    type=click.Choice(["auto", "hf", "modelscope"]),
    default="auto",
    help="auto: Hugging Face where the name exists there, else ModelScope.",
)
@click.option("--endpoint", metavar="URL", help="A mirror that speaks the source's protocol.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit; also as MODEL@REV.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only these files.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Not these files.")
@click.option("--all-files", is_flag=True, help="Second formats of the same weights too.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and leave.")
@click.option("--jobs", type=click.IntRange(1, 64), default=8, help="Files at once.")
@click.option("--max-rate", metavar="RATE", help="Bytes a second at most: 100MB/s.")
@click.option(
    "--verify",
    type=click.Choice(["full", "size"]),
    default="full",
    help="size: believe files that are here by their size. What is fetched is always verified.",
)
@click.option("--for-profile", metavar="PROFILE", help="Whether it fits with this profile.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Take the hub's token from a file.",
)
@click.option(
    "--progress",
    type=click.Choice(["auto", "plain", "json", "none"]),
    default="auto",
    help="json: one object a line on stderr.",
)
@click.pass_obj
def pull(
    out: Output,
    model: str,
    source: SourceChoice,
    endpoint: str | None,
    revision: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    all_files: bool,
    dry_run: bool,
    jobs: int,
    max_rate: str | None,
    verify: Literal["full", "size"],
    for_profile: str | None,
    token_file: Path | None,
    progress: Style,
) -> None:
    """Download MODEL, such as Qwen/Qwen3-8B or Qwen/Qwen3-8B@main.

    An interrupted pull goes on where it stopped when the same command is run again.
    """
    limit = byte_count(max_rate, "--max-rate") if max_rate else 0
    if local.is_folder_name(model):
        _tell_local(out, model, local.folder_of(model))
        return
    want = Want(model, revision, source, endpoint, include, exclude, all_files)
    here = already_here(want)
    if here is not None:
        _tell_local(out, model, here.folder)
        return
    patience = Patience()
    click.get_current_context().with_resource(token_of(token_file))
    plan = make_plan(want, patience)
    fit = fits(plan, store.find(for_profile).profile if for_profile else None)
    if dry_run:
        out.result(plan_text(plan, fit), plan_data(plan, fit) | {"dry_run": True})
        return
    out.note(plan_text(plan, fit))
    check_disk(plan)
    draw = drawing(progress, out)
    pulled = fetch(out, plan, patience, jobs, draw, max_rate=limit, read_all=verify == "full")
    if not limit:
        rates.keep_rate(pulled.received_bytes, pulled.seconds)
    out.result(pulled_text(plan, pulled), plan_data(plan, fit) | _pulled_data(pulled))


@contextlib.contextmanager
def token_of(file: Path | None) -> Iterator[None]:
    """Both hubs' clients find the token of `file` where they look first. UsageError when the file
    cannot be read, or others can."""
    if file is None:
        yield
        return
    try:
        mode, token = file.stat().st_mode, file.read_text().strip()
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is no text"
        raise UsageError(
            f"the token's file {file} cannot be read: {why}.",
            "Name a file that holds nothing but the token.",
            code="APL-USE-034",
        ) from e
    if mode & 0o077:
        raise UsageError(
            f"others may read the token's file {file} (mode {mode & 0o777:03o}).",
            f"chmod 600 {file}",
            code="APL-USE-034",
        )
    names = ("HF_TOKEN", "MODELSCOPE_API_TOKEN")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, token))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def fits(plan: Plan, profile: Profile | None = None) -> str | None:
    """Whether the model can be served on this machine; None when its shape is not known."""
    if plan.config is None:
        return None
    return verdict(plan.config, plan.weight_bytes, profile=profile)


def fetch(
    out: Output,
    plan: Plan,
    patience: Patience,
    jobs: int,
    draw: Drawing,
    *,
    max_rate: float = 0.0,
    read_all: bool = True,
) -> Pulled:
    """Carries out a plan and shows how it goes on; Ctrl-C says where it stopped."""
    done = plan.here_bytes

    def tell(p: Progress) -> None:
        nonlocal done
        done = p.done_bytes
        draw.show(p)

    try:
        return carry_out(plan, patience, jobs, tell, max_rate=max_rate, read_all=read_all)
    except KeyboardInterrupt:
        draw.close()
        out.note(
            f"Stopped at {gigabytes(done)}/{gigabytes(plan.total_bytes)}. "
            "Run the same command to continue."
        )
        raise
    finally:
        draw.close()


def _tell_local(out: Output, model: str, folder: Path) -> None:
    out.result(
        f"{model} is complete on this disk; nothing to pull   → {folder}",
        {"schema": "appliance.pull/1", "model": model, "path": str(folder), "downloaded_bytes": 0},
    )


def plan_text(plan: Plan, fit: str | None) -> str:
    """The plan for people: what, from where, to where, what is left out, whether it fits."""
    listing = plan.listing
    pinned = listing.revision
    if listing.commit != listing.revision:
        pinned += f"@{listing.commit[:8]}"
    take = f"{len(plan.takes)} files, {gigabytes(plan.total_bytes)}"
    lines = [f"Plan  {listing.name} from {listing.title}, {pinned}: {take}"]
    if plan.note:
        lines.append(f"      {plan.note}")
    if plan.skipped:
        lines.append(f"      skipping {skipped_text(plan)}")
    to_come = f"{gigabytes(plan.remaining_bytes)} to download"
    if plan.here_bytes:
        to_come = f"already here {gigabytes(plan.here_bytes)}, {to_come}"
    rate = rates.last_rate()
    if rate and plan.remaining_bytes > rates.LARGE_PULL:
        to_come += f", about {duration(plan.remaining_bytes / rate)} at your last rate"
    lines.append(f"      to {plan.layout.cache} ({gigabytes(plan.free_bytes)} free); {to_come}")
    if plan.free_bytes < plan.needed_bytes:
        lacks = plan.needed_bytes - plan.free_bytes
        lines.append(f"      the disk lacks {gigabytes(lacks)}")
    if fit is not None:
        lines.append(f"      this machine: {fit}")
    return "\n".join(lines)


def skipped_text(plan: Plan) -> str:
    """`2 files, 16.1 GB, pickled (original/x.pth, …); --all-files to keep`."""
    by_why: dict[str, list[str]] = defaultdict(list)
    size = sum(s.file.size for s in plan.skipped)
    for s in plan.skipped:
        by_why[s.why].append(s.file.path)
    told = "; ".join(
        f"{', '.join(names[:2])}{f' and {len(names) - 2} more' if len(names) > 2 else ''} ({why})"
        for why, names in by_why.items()
    )
    chosen = all(why.startswith(("--exclude", "not in")) for why in by_why)
    keep = "" if chosen else "; --all-files to keep"
    return f"{len(plan.skipped)} files, {gigabytes(size)}: {told}{keep}"


def pulled_text(plan: Plan, pulled: Pulled) -> str:
    if pulled.received_bytes == 0:
        return (
            f"Here already: {plan.listing.name}, {gigabytes(plan.total_bytes)}   → {pulled.folder}"
        )
    rate = pulled.received_bytes / max(pulled.seconds, 1e-3) / 1e6
    return (
        f"Pulled  {gigabytes(pulled.received_bytes)} in {duration(pulled.seconds)} "
        f"({rate:.0f} MB/s), digests of {pulled.verified_files} files verified   "
        f"→ {pulled.folder}"
    )


def plan_data(plan: Plan, fit: str | None) -> dict[str, Any]:
    listing = plan.listing
    return {
        "schema": "appliance.pull/1",
        "model": listing.name,
        "source": listing.source,
        "endpoint": listing.endpoint,
        "revision": listing.revision,
        "commit": listing.commit,
        "path": str(plan.layout.folder),
        "total_bytes": plan.total_bytes,
        "already_bytes": plan.here_bytes,
        "remaining_bytes": plan.remaining_bytes,
        "free_bytes": plan.free_bytes,
        "needed_bytes": plan.needed_bytes,
        "fit": fit,
        "files": [
            {"path": t.file.path, "size_bytes": t.file.size, "have_bytes": t.have}
            for t in plan.takes
        ],
        "skipped": [
            {"path": s.file.path, "size_bytes": s.file.size, "why": s.why} for s in plan.skipped
        ],
        "dry_run": False,
    }


def _pulled_data(pulled: Pulled) -> dict[str, Any]:
    return {
        "downloaded_bytes": pulled.received_bytes,
        "verified_files": pulled.verified_files,
        "duration_s": round(pulled.seconds, 3),
    }


def offer_pull(out: Output, model: str | None, absent: NotFoundError) -> bool:
    """Downloads a model that `up` was asked for and that is not here, when the user says yes.

    False where it is no question of a download, or nobody says yes. DoesNotFitError when this
    machine could not serve it; the errors of a pull.
    """
    if model is None or absent.code not in ABSENT or offline_variable(os.environ):
        return False
    patience = Patience()
    plan = make_plan(Want(model), patience)
    fit = fits(plan)
    out.note(plan_text(plan, fit))
    if fit is not None and not fit.startswith("fits"):
        raise DoesNotFitError(
            f"{model} {fit}", f"appliance pull {model}     downloads it all the same"
        )
    check_disk(plan)
    if not out.confirm(f"{model} is not complete on this disk. Pull it?"):
        return False
    out.note(pulled_text(plan, fetch(out, plan, patience, 8, drawing("auto", out))))
    return True
