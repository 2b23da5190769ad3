"""Records take the place of those published before: those go to the archive, and the verdicts into the history."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from mmkit.errors import MmkitError
from mmkit.files import replace_folder, restore_folder
from mmkit.published import history, pages
from mmkit.repro import batches, paths, report
from mmkit.repro.batches import Batch

PLATFORM = r"[a-z0-9][a-z0-9._-]*"
WORDING = ("statement", "source", "scope", "limits", "unit")  # the rest of a claim is what it tests
KEPT = ("plan.json", "results.jsonl")  # of what is superseded; its items, the bulk, are in version control


def write(
    plan: str, *, out: Path | None, publish: bool = False, why: str = "", platform: str = "", readme: bool = False
) -> Iterator[str]:
    """What `mmkit report` does, and a line for each file or folder it wrote."""
    if (why or platform) and not publish:
        raise MmkitError("--why and --platform say how records are published: add --publish")
    if readme:
        changed = pages.refresh()
        yield from (f"written: {page}" for page in changed)
        yield from [] if changed else ["the pages say already what is published"]
        return
    if publish:
        yield f"published: {replace_published(plan, why=why, platform=platform)}"
    yield f"the report: {report.export(plan, out=out)}"


def replace_published(plan: str, *, why: str = "", platform: str = "") -> Path:
    """Publish a plan's runs (without any here: what is published, judged by today's rule); returns where they lie.

    why: a sentence, needed where a verdict is another than the one before. platform: publish beside the plan's records,
    as what came out elsewhere (`torch-2.11` becomes `records/PLAN@torch-2.11/`).
    Raises: MmkitError for runs that are missing, a platform that is no name, a verdict that changed without a `why`.
    """
    if platform and not re.fullmatch(PLATFORM, platform):
        raise MmkitError(f"--platform {platform!r} is no name: use small letters, digits, '.', '-' and '_'")
    name = report.named(plan)
    batch, _ = report.open_batch(name)
    if not batch.complete:
        lacks = f"{len(batch.failures)} failed and {len(batch.missing)} were not made"
        raise MmkitError(f"{name}: of its runs {lacks}: 'mmkit reproduce {name}' makes them, then publish")
    whole = f"{name}@{platform}" if platform else name
    found, folder = report.verdicts(batch), paths.notebooks() / "records" / whole
    added = history.lines(whole, batch, found, why)
    if superseded(batch, folder):
        archive(folder)
    batches.publish(batch, folder)
    history.append(added)
    pages.refresh()
    return folder


def superseded(batch: Batch, folder: Path) -> bool:
    """What is published in a folder is of other claims or other seeds than a batch."""
    restore_folder(folder)
    if not (folder / "plan.json").exists():
        return False
    old = batches.load(folder)
    return _tested(old) != _tested(batch)


def _tested(batch: Batch) -> tuple[list[dict], set[int]]:
    """What the claims of a batch test, whatever their wording, and the seeds it was run over."""
    claims = []
    for claim in batch.manifest["claims"]:
        claims.append({name: value for name, value in claim.items() if name not in WORDING})
    return claims, {result.row["seed"] for result in batch.results}


def archive(folder: Path) -> Path:
    """Copy what is published to `records/archive/`, without items, under the first free name; returns where."""
    place, number = folder.parent / "archive" / folder.name, 1
    while place.exists():
        number += 1
        place = place.with_name(f"{folder.name}-{number}")
    part = place.with_name(f".{place.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in KEPT:
        shutil.copyfile(folder / name, part / name)
    replace_folder(part, place)
    return place
