"""From records to what a reader sees: tables of claims, where the numbers come from, and one HTML file.

Text of records, plans and claims is escaped where it becomes HTML; what comes through all the same (a caption in
Markdown) is cleaned when the page is made, and the page's policy lets no code run and nothing be fetched.
"""

import html
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from mmkit import notebooks, stats
from mmkit.errors import MmkitError
from mmkit.files import restore_folder
from mmkit.repro import batches, paths
from mmkit.repro.batches import Batch, load
from mmkit.repro.claims import Claim, Verdict, evaluate, read_claims, waiting
from mmkit.repro.figures import across, arm_frames, arm_points, condition_text, conditions, panels  # noqa: F401
from mmkit.repro.plan import read_plan

NOTEBOOK = "99_report"
SIGNS = {
    "supported": "✔", "direction only": "↗", "equivalent": "≈", "excluded": "⊘", "contradicted": "✘",
    "inconclusive": "?", "unstable": "↯", "nothing learned to compare": "⊥", "nothing left to tell apart": "⊤",
    "not tuned alike": "≠", "not evidence": "–",
}  # fmt: skip
GREY = "#666666"
COLOURS = {"supported": "#0072B2", "contradicted": "#B34700", "equivalent": "#00795A"}
COLOURS |= {"direction only": COLOURS["supported"], "excluded": COLOURS["contradicted"]}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
TAGS = (
    "a b br caption code dd details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr i img li ol p pre small span "
    "strong sub summary sup table tbody td th thead tr ul"
).split()
STYLES = "border color font-weight margin max-width min-width padding text-align white-space width".split()
ATTRIBUTES = {"*": ["class", "style", "colspan", "rowspan"], "a": ["href"], "img": ["src", "alt"], "table": ["border"]}
MADE_BY_US = '<meta name="generator" content="mmkit">'


def export(plan: str = "head_to_head", *, out: Path | None = None, batch: Batch | None = None) -> Path:
    """Run the report notebook on a plan's records and write it as one HTML file without code or outside references.

    batch: the plan's runs made here, where they are loaded already. out: the file, by default `runs/PLAN/report.html`.
    Raises: MmkitError when the plan has no records yet, or `out` is a file that is no report.
    """
    name = batch.manifest["plan"]["name"] if batch else named(plan)
    place = paths.batch(name)
    folder = place if batch else _folder(name)
    if not batch and not (folder / "plan.json").exists():
        read_plan(plan)  # refuses a name that no plan has, with the nearest one
    out = Path(out) if out else place / "report.html"
    if out.is_file() and MADE_BY_US not in out.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise MmkitError(f"{out} is there already and is no report of mmkit: give --out another name, or remove it")
    asked = batch.manifest["plan"] if batch else batches.manifest(folder)["plan"]
    executed = place / "report.ipynb"
    values = {"plan": name, "runs_dir": str(folder.parent)}
    notebooks.execute(paths.notebooks() / f"{NOTEBOOK}.ipynb", executed, values, profile=asked["profile"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(executed, title=asked["title"]), encoding="utf-8", errors="backslashreplace")
    return out


def named(plan: str | Path) -> str:
    """The name of a plan that is given by its name or its file. Raises: MmkitError for a file that is no plan."""
    return read_plan(plan).name if Path(plan).suffix else str(plan)


def open_batch(plan: str, runs_dir: str = "") -> tuple[Batch, Path]:
    """A plan's records and their folder: those of `runs_dir` (default: the runs made here), else the published ones."""
    folder = Path(runs_dir) / plan if runs_dir else _folder(plan)
    return load(folder), folder


def _folder(plan: str) -> Path:
    own, published = paths.batch(plan), paths.notebooks() / "records" / plan
    restore_folder(published)
    return own if (own / "plan.json").exists() or not published.exists() else published


def verdicts(batch: Batch) -> list[Verdict]:
    """The verdicts on the claims of the batch's plan, as they stood when it was run."""
    claims = map(Claim.model_validate, batch.manifest["claims"])
    return evaluate(claims, batch.results, declared=read_claims(), incomplete=not batch.complete)


def effect_text(verdict: Verdict) -> str:
    """Effect and interval in the claim's unit, `+0.034 [+0.010, +0.058] accuracy`; on the log2 scale as a ratio."""
    if verdict.estimate is None:
        return "no result"
    estimate, claim = verdict.estimate, verdict.claim
    return interval_text(estimate.effect, estimate.low, estimate.high, claim.unit, claim.scale)


def interval_text(effect: float, low: float, high: float, unit: str, scale: str) -> str:
    """`effect_text` of bare numbers."""
    if scale == "log2":
        ratio, least, most = (f"{2**value:.3g}" for value in (effect, low, high))
        return f"x{ratio} [{least}, {most}] {unit.removeprefix('log2 ')}"
    form = "+.3f" if 0.0095 < max(map(abs, (effect, low, high))) < 100 else "+.2g"
    return f"{effect:{form}} [{low:{form}}, {high:{form}}] {unit}"


def forest_rows(found: Sequence[Verdict]) -> list[dict]:
    """What `mmkit.teach.plots.forest` draws: the claims that have an estimate."""
    rows = []
    for verdict in found:
        claim, estimate = verdict.claim, verdict.estimate
        if estimate is not None:
            label = f"{claim.id}  {textwrap.shorten(claim.statement, 44, placeholder=' ...')}"
            about = {"label": label, "verdict": verdict.verdict, "text": f"{verdict.verdict}  {effect_text(verdict)}"}
            effect = {"effect": estimate.effect, "low": estimate.low, "high": estimate.high}
            rows.append(about | effect | {"smallest_effect": claim.smallest_effect, "sign": claim.sign})
    return rows


def claims_table(found: Sequence[Verdict]) -> pd.DataFrame:
    """One line a claim: verdict, effect with interval, and what a reader needs to weigh it."""
    lines = {}
    for verdict in found:
        claim, some, seeds = verdict.claim, verdict.estimate is not None, len(verdict.seeds)
        lines[claim.id] = {
            "verdict": f"{SIGNS[verdict.verdict]} {verdict.verdict}",
            "claim": claim.statement,
            "effect [95 % interval]": effect_text(verdict).replace(", ", ",\u00a0"),
            "in how many seeds": verdict.in_favour if some else "–",
            "p (Holm)": f"{verdict.p_holm:.3f}" if some else "–",
            "seeds": f"{seeds}" if seeds == claim.seeds else f"{seeds} of {claim.seeds} declared",
            "clusters": f"{verdict.estimate.clusters:,}" if some and verdict.estimate.clusters else "–",
            "compute ratio": f"x{verdict.compute_ratio:.2g}" if verdict.compute_ratio else "–",
            "smallest detectable": _size(verdict, verdict.detectable) if seeds > 1 else "–",
            "smallest that matters": _size(verdict, claim.smallest_effect),
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def _size(verdict: Verdict, value: float) -> str:
    return f"x{2**value:.3g}" if verdict.claim.scale == "log2" else f"{value:.3g}"


def claim_cards(
    found: Sequence[Verdict], manifest: dict | None = None, given: Callable[[str], str] = lambda claim: ""
) -> str:
    """HTML: per claim its source, scope, what was compared, the verdict's reason, and its limits.

    manifest: the plan's; with it the card says whether the claim was declared before its first run. given: what gives
    the verdicts that a claim had by its id, a line each (`mmkit.published.history.given`).
    """
    declared = {claim.id: claim for claim in read_claims()}
    changed = "claims.yaml reads differently now; this is the verdict on the claim as it stood when it was run"
    cards = []
    for verdict in found:
        claim = verdict.claim
        lines = {
            "Asserted in": claim.source,
            "Scope": claim.scope,
            "Compared": "; ".join(f"{term.weight:+g} x {term}" for term in claim.terms),
            "Verdict": f"{verdict.verdict}: {verdict.reason}",
            "Again": _again(verdict),
            "Power": _power(verdict) if len(verdict.seeds) > 1 else "",
            "Left out": f"seeds {', '.join(map(str, verdict.left_out))} lack a run" if verdict.left_out else "",
            "Verdicts it was given": given(claim.id),
            "Limits": claim.limits,
            "Declared": _declared(manifest) if manifest else "",
            "Changed": changed if declared.get(claim.id, claim) != claim else "",
        }
        title = html.escape(f"{SIGNS[verdict.verdict]} {claim.id}: {claim.statement}")
        colour = COLOURS.get(verdict.verdict, GREY)
        summary = f'<summary><b style="color:{colour}">{title}</b></summary>'
        cards.append(f"<details>{summary}{_definitions(lines)}</details>")
    return "\n".join(cards)


def _definitions(lines: dict[str, str]) -> str:
    rows = []
    for name, text in lines.items():
        told = "<br>".join(html.escape(text).splitlines())
        rows += [f"<dt>{html.escape(name)}</dt><dd>{told}</dd>"] if told else []
    return f"<dl>{''.join(rows)}</dl>"


def _declared(manifest: dict) -> str:
    """When the claims of a plan were written down as they stand, against its first run on record."""
    since, first = manifest.get("declared"), manifest["started"]
    if not since:
        return f"the records do not say when; the first run on record ended by {first}"
    return f"as it stands since {since}, {'before' if since <= first else 'AFTER'} the first run on record ({first})"


def waiting_claims(manifest: dict) -> str:
    """HTML, folded: the claims that are declared and not run yet, by the plan that would run them."""
    lines = {}
    for plan, claims in sorted(waiting(manifest).items(), key=lambda item: not item[0]):
        for claim in claims:
            lines[f"{claim.id}, {f'plan {plan}' if plan else 'no experiment yet'}"] = claim.statement
    title = f"Declared, not run yet: {len(lines)} claims of other plans and of experiments to come"
    return f"<details><summary>{title}</summary>{_definitions(lines)}</details>" if lines else ""


def _again(verdict: Verdict) -> str:
    if math.isnan(verdict.replication):
        return ""
    return f"of another {verdict.claim.seeds} seeds, {verdict.replication:.0%} would give the same verdict (predicted)"


def _power(verdict: Verdict) -> str:
    smallest = _size(verdict, verdict.claim.smallest_effect)
    needed = stats.seeds_needed(verdict.estimate.effects, verdict.claim.smallest_effect)
    seeds = "more than a thousand seeds" if needed is None else f"{needed} seeds"
    return (
        f"these {len(verdict.seeds)} seeds and their clusters find an effect of {_size(verdict, verdict.detectable)} "
        f"four times in five; by the spread of its seeds alone, {smallest}, the smallest that matters, takes {seeds}"
    )


def arm_tables(results: Sequence) -> str:
    """HTML: per condition one folded table of all arms, every score with its interval and every cost."""
    parts = []
    for text, frame in arm_frames(results):
        parts.append(f"<details><summary>{html.escape(text)}</summary>{table_html(frame)}</details>")
    return "\n".join(parts)


def failures_table(batch: Batch) -> pd.DataFrame:
    """What did not finish: run, cell, kind, message, attempts; and what was never begun."""
    lines = []
    for failure in batch.failures:
        line = {"run": failure["label"], "cell": failure.get("cell", "?"), "kind": failure["kind"]}
        message = (failure["message"].splitlines() or [""])[-1][:160]
        lines.append(line | {"message": message, "attempts": str(failure["attempts"])})
    for label in batch.missing:
        lines.append({"run": label, "cell": "–", "kind": "not run", "message": "–", "attempts": "0"})
    return pd.DataFrame(lines)


def provenance(batch: Batch) -> pd.DataFrame:
    """Where the numbers come from: plan, code, data, versions and hardware, each with every value that occurred."""
    manifest, headers = batch.manifest, batch.headers
    plan, finished = manifest["plan"], [header["finished"] for header in headers]
    counts = f"{len(headers)} finished, {len(batch.failures)} failed, {len(batch.missing)} not run"
    facts = {
        "plan": [f"{plan['name']}: {plan['title']} (profile {plan['profile']})"],
        "runs": [f"{counts}; {sum(header['seconds'] for header in headers):,.0f} s of work"],
        "made by": [batches.made_by(manifest)],
        "data": [f"{result.row['data']} {result.row['data_hash'][:12]}" for result in batch.results],
        "made": [f"{min(finished, default='–')} to {max(finished, default='–')}"],
        "processor": [_processor(header["hardware"]) for header in headers],
        "GPU": [result.row["hardware"].get("gpu", "none") for result in batch.results],
        "versions": [", ".join(map(" ".join, header["versions"].items())) for header in headers],
    }
    return pd.DataFrame({"": {name: "; ".join(dict.fromkeys(values)) for name, values in facts.items()}})


def _processor(hardware: dict) -> str:
    memory = f"{hardware['memory_bytes'] / 1e9:.0f} GB"
    return f"{hardware['processor']}, {hardware['cores']} cores, {memory}, {hardware['system']}"


def table_html(frame: pd.DataFrame) -> str:
    """A table as plain HTML, verdicts in their colour; it reads in a notebook, on the web and in the report."""
    text = frame.to_html(border=0, classes="mmkit", justify="left")
    # A sentence is not squeezed into a column of single words.
    text = re.sub(r"<td>(?=[^<]{60})", '<td style="min-width:20rem">', text)
    for name, sign in SIGNS.items():
        style = f"color:{COLOURS.get(name, GREY)};white-space:nowrap"
        text = text.replace(f"<td>{sign} {name}</td>", f'<td style="{style}"><b>{sign} {name}</b></td>')
    return text


def page(executed: Path, *, title: str) -> str:
    """An executed notebook as one HTML page: prose and outputs only, images inside, nothing fetched, no code."""
    import nbformat
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors.sanitize import SanitizeHTML

    class Cleaned(SanitizeHTML):
        """Cleans outputs, which hold text of records. The prose of cells is the kit's own."""

        def preprocess_cell(self, cell, resources, cell_index):
            return (
                super().preprocess_cell(cell, resources, cell_index) if cell.cell_type == "code" else (cell, resources)
            )

    cleaned = Cleaned(enabled=True, tags=TAGS, attributes=ATTRIBUTES, styles=STYLES)
    exporter = HTMLExporter(
        template_name="basic", exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True
    )
    exporter.register_preprocessor(cleaned, enabled=True)
    notebook = nbformat.read(executed, as_version=4)
    notebook.cells = _for_readers(notebook.cells)
    body, _ = exporter.from_notebook_node(notebook)
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">{MADE_BY_US}'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{style}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main>{body}</main></body></html>\n'


def _for_readers(cells: list) -> list:
    """The cells of a report: no exercises, and of the first cell only the title."""
    cells[0].source = cells[0].source.splitlines()[0]
    kept, section = [], ""
    for cell in cells:
        if cell.cell_type == "markdown":
            section = next((line for line in cell.source.splitlines() if line.startswith("## ")), section)
        if section != "## Exercises":
            kept.append(cell)
    return kept
