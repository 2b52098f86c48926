"""`appliance pull`: says what it will do, does it, says what was done."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import click

from appliance.cli.bars import Style, drawing
from appliance.cli.output import Output, duration, gigabytes
from appliance.hub import local
from appliance.hub.plan import Plan, SourceChoice, Want, already_here, check_disk, make_plan
from appliance.hub.pull import Progress, Pulled, carry_out
from appliance.hub.source import Patience
from appliance.profiles.pick import verdict


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
    progress: Style,
) -> None:
    """Download MODEL, such as Qwen/Qwen3-8B or Qwen/Qwen3-8B@main.

    An interrupted pull goes on where it stopped when the same command is run again.
    """
    if local.is_folder_name(model):
        _tell_local(out, model, local.folder_of(model))
        return
    want = Want(model, revision, source, endpoint, include, exclude, all_files)
    here = already_here(want)
    if here is not None:
        _tell_local(out, model, here.folder)
        return
    patience = Patience()
    plan = make_plan(want, patience)
    fit = fits(plan)
    if dry_run:
        out.result(plan_text(plan, fit), plan_data(plan, fit) | {"dry_run": True})
        return
    out.note(plan_text(plan, fit))
    check_disk(plan)
    pulled = _carry_out(out, plan, patience, jobs, progress)
    out.result(pulled_text(plan, pulled), plan_data(plan, fit) | _pulled_data(pulled))


def fits(plan: Plan) -> str | None:
    """Whether the model can be served on this machine; None when its shape is not known."""
    return verdict(plan.config, plan.weight_bytes) if plan.config is not None else None


def _carry_out(out: Output, plan: Plan, patience: Patience, jobs: int, style: Style) -> Pulled:
    draw = drawing(style, out)
    done = plan.here_bytes

    def tell(p: Progress) -> None:
        nonlocal done
        done = p.done_bytes
        draw.show(p)

    try:
        return carry_out(plan, patience, jobs, tell)
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
