"""What README and the archive's page say of verdicts: written from what is published, between two marks."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmkit.errors import MmkitError
from mmkit.files import write_whole
from mmkit.published import history
from mmkit.repro import paths
from mmkit.repro.batches import manifest

START, END = "<!-- written by 'mmkit report --readme'; do not edit -->", "<!-- end of what is written -->"


def refresh() -> list[Path]:
    """Write the pages anew; returns those that changed. Raises: MmkitError for a page without its two marks."""
    changed = []
    for page, text in texts().items():
        if page.read_text(encoding="utf-8") != text:
            write_whole(page, text)
            changed.append(page)
    return changed


def texts() -> dict[Path, str]:
    """Each page as it should read."""
    records = paths.notebooks() / "records"
    sections = {paths.root() / "README.md": findings, records / "archive" / "README.md": fallen}
    return {page: _filled(page, "\n".join(section()).rstrip()) for page, section in sections.items() if page.exists()}


def _filled(page: Path, section: str) -> str:
    text = page.read_text(encoding="utf-8")
    if text.count(START) != 1 or text.count(END) != 1:
        raise MmkitError(f"{page} lacks its marks: put {START} and {END} around what is written")
    before, _, rest = text.partition(START)
    return f"{before}{START}\n\n{section}\n\n{END}{rest.partition(END)[2]}"


def findings() -> Iterator[str]:
    """What is published, in sentences: per plan its claims with verdict, effect, interval, seeds and cost."""
    entries = history.read()
    for path in sorted(paths.notebooks().glob("records/*/plan.json")):
        asked, given = manifest(path.parent), history.latest(entries, path.parent.name)
        first, at, platform = path.parent.name.partition("@")
        if at:
            yield _elsewhere(platform, given, first, history.latest(entries, first))
            continue
        title = asked["plan"]["title"].rstrip(".")
        if not asked["claims"]:
            shown = f"no verdicts; `mmkit report {path.parent.name}` shows its tables"
            yield f"**{path.parent.name}**: {title}. No claims, so {shown}.\n"
            continue
        told = [(claim, given[claim["id"]]) for claim in asked["claims"] if claim["id"] in given]
        tally = Counter(entry["verdict"] for _, entry in told)
        counts = ", ".join(f"{number} {verdict}" for verdict, number in tally.most_common())
        yield f"<details><summary><b>{path.parent.name}</b>: {title}. {len(told)} claims: {counts}.</summary>\n"
        for claim, entry in told:
            yield f"- **{claim['id']}, {entry['verdict']}.** {claim['statement']} {_numbers(entry)}"
        yield "\n</details>\n"


def _elsewhere(platform: str, given: dict[str, dict], first: str, before: dict[str, dict]) -> str:
    """The verdicts of another platform beside the first's, in a sentence."""
    shared = [name for name in given if name in before]
    other = [name for name in shared if given[name]["verdict"] != before[name]["verdict"]]
    told = (f"{name} {before[name]['verdict']} there, {given[name]['verdict']} here" for name in other)
    same = f"{len(shared) - len(other)} of {len(shared)} verdicts are those of {first}"
    return f"**{first} on {platform}**: {same}{'; ' if other else ''}{', '.join(told)}.\n"


def _numbers(entry: dict) -> str:
    seeds = f"{len(entry['seeds'])} seeds"
    cost = f"; compute ratio x{entry['ratio']:.2g}" if entry["ratio"] else ""
    return f"Effect {history.effect_of(entry)}, {seeds}{cost}."


def fallen() -> Iterator[str]:
    """What is in the archive, and a table of the verdicts that changed: what a claim was and is called, and why."""
    before: dict[tuple[str, str], dict] = {}
    for path in sorted(paths.notebooks().glob("records/archive/*/plan.json")):
        asked = paths.read_json(path)
        made = f"{len(asked['headers'])} runs of {asked['headers'][0]['finished'][:10]}, code {asked['code_hash'][:12]}"
        yield f"- `{path.parent.name}`: {asked['plan']['title'].rstrip('.')}; {made}\n"
    yield "| claim | plan | date | verdict before | verdict then | why |\n|---|---|---|---|---|---|"
    for entry in history.read():
        key = entry["plan"], entry["claim"]
        old = before.get(key, entry)
        if old["verdict"] != entry["verdict"]:
            cells = [entry[name] for name in ("claim", "plan", "date")]
            cells += [f"{each['verdict']}, {history.effect_of(each)}" for each in (old, entry)]
            yield f"| {' | '.join(cell.replace('|', '/') for cell in [*cells, entry['why']])} |"
        before[key] = entry
    for (plan, claim), entry in before.items():
        path = paths.notebooks() / "records" / plan / "plan.json"
        if not path.exists() or claim not in [each["id"] for each in paths.read_json(path)["claims"]]:
            last = f"{entry['verdict']}, {history.effect_of(entry)}"
            yield f"| {claim} | {plan} | {entry['date']} | {last} | none | the plan claims it no longer |"
