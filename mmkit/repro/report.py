"""From records to what a reader sees: tables, the rows of the figures, and one HTML file."""

import html
import json
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mmkit import notebooks
from mmkit.repro import paths, runner, stats
from mmkit.repro.claims import Claim, Verdict, aligned_terms, evaluate, history, read_claims, waiting
from mmkit.repro.plan import code_hash, read_plan
from mmkit.repro.records import Result

NOTEBOOK = "99_report"
SIGNS = {"supported": "✔", "contradicted": "✘", "equivalent": "≈", "inconclusive": "?", "not evidence": "–"}
COLOURS = {"supported": "#0072B2", "contradicted": "#B34700", "equivalent": "#00795A", "inconclusive": "#666666", "not evidence": "#666666"}
COSTS = {"flops": "FLOPs", "seconds": "seconds", "peak_bytes": "peak memory (GB)", "parameters_trained": "trained", "parameters_total": "parameters"}


def reproduce(plan: str = "head_to_head", *, workers: int | None = None, scheduler: str | None = None, dry_run: bool = False) -> int:
    """Run a plan, write its report and say what was found; returns the exit code, 1 when runs are missing or failed."""
    batch = runner.run_plan(plan, workers=workers, scheduler=scheduler, dry_run=dry_run)
    if dry_run:
        return 0
    for verdict in verdicts(batch):
        print(f"{SIGNS[verdict.verdict]} {verdict.claim.id} {verdict.verdict}: {verdict.claim.statement} ({effect_text(verdict)}; {verdict.reason})")
    for failure in batch.failures:
        print(f"FAILED {failure['label']}: {failure['message']}")
    print(f"the report: {export(plan, batch=batch)}")
    return 0 if batch.complete else 1


def export(plan: str = "head_to_head", *, out: Path | None = None, publish: bool = False, batch: runner.Batch | None = None) -> Path:
    """Run the report notebook on a plan's records and write it as one HTML file without code or outside references.

    batch: the plan's runs made here, where they are loaded already. out: the file, by default `runs/PLAN/report.html`. publish: also copy the records, compactly, to `notebooks/records/PLAN/`.
    Raises: MmkitError when the plan has no records yet.
    """
    name = batch.manifest["plan"]["name"] if batch else read_plan(plan).name if Path(plan).suffix else str(plan)
    place = paths.runs() / name
    folder = place if batch else _folder(name)
    if not batch and not (folder / "plan.json").exists():
        read_plan(plan)  # refuses a name that no plan has, with the nearest one
    asked = batch.manifest["plan"] if batch else runner.manifest(folder)["plan"]
    if publish:
        runner.publish(batch or runner.load(folder), paths.notebooks() / "records" / name)
    executed = place / "report.ipynb"
    notebooks.execute(paths.notebooks() / f"{NOTEBOOK}.ipynb", executed, {"plan": name, "runs_dir": str(folder.parent)}, profile=asked["profile"])
    out = Path(out) if out else place / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(executed, title=asked["title"]), encoding="utf-8")
    return out


def open_batch(plan: str, runs_dir: str = "") -> tuple[runner.Batch, Path]:
    """A plan's records and their folder: those of `runs_dir` (default: the runs made here), else the published ones."""
    folder = Path(runs_dir) / plan if runs_dir else _folder(plan)
    return runner.load(folder), folder


def _folder(plan: str) -> Path:
    own, published = paths.runs() / plan, paths.notebooks() / "records" / plan
    return own if (own / "plan.json").exists() or not published.exists() else published


def verdicts(batch: runner.Batch) -> list[Verdict]:
    """The verdicts on the claims of the batch's plan, as they stood when it was run."""
    return evaluate([Claim.model_validate(claim) for claim in batch.manifest["claims"]], batch.results, declared=read_claims(), incomplete=not batch.complete)


def effect_text(verdict: Verdict, *, bare: bool = False) -> str:
    """Effect and interval in the claim's unit, `+0.034 [+0.010, +0.058] accuracy`; on the log2 scale as a ratio."""
    if verdict.estimate is None:
        return "no result"
    values = (verdict.estimate.effect, verdict.estimate.low, verdict.estimate.high)
    if verdict.claim.scale == "log2":
        effect, low, high = (f"{2**value:.3g}" for value in values)
        return f"x{effect} [{low}, {high}]" + ("" if bare else f" {verdict.claim.unit.removeprefix('log2 ')}")
    effect, low, high = (f"{value:+.3f}" if 0.0095 < max(map(abs, values)) < 100 else f"{value:+.2g}" for value in values)
    return f"{effect} [{low}, {high}]" + ("" if bare else f" {verdict.claim.unit}")


def forest_rows(found: Sequence[Verdict]) -> list[dict]:
    """What `mmkit.teach.plots.forest` draws: the claims that have an estimate."""
    return [
        {
            "label": f"{verdict.claim.id}  {textwrap.shorten(verdict.claim.statement, 44, placeholder=' ...')}",
            "effect": verdict.estimate.effect,
            "low": verdict.estimate.low,
            "high": verdict.estimate.high,
            "smallest_effect": verdict.claim.smallest_effect,
            "sign": verdict.claim.sign,
            "verdict": verdict.verdict,
            "text": f"{verdict.verdict}  {effect_text(verdict)}",
        }
        for verdict in found
        if verdict.estimate is not None
    ]


def claims_table(found: Sequence[Verdict]) -> pd.DataFrame:
    """One line a claim: verdict, effect with interval, and what a reader needs to weigh it."""
    lines = {}
    for verdict in found:
        some = verdict.estimate is not None
        ratio = verdict.compute_ratio
        lines[verdict.claim.id] = {
            "verdict": f"{SIGNS[verdict.verdict]} {verdict.verdict}",
            "claim": verdict.claim.statement,
            "effect [95 % interval]": effect_text(verdict).replace(", ", ",\u00a0"),
            "in how many seeds": f"{verdict.improvement:.0%}" if some else "–",
            "p (Holm)": f"{verdict.p_holm:.3f}" if some else "–",
            "seeds": str(len(verdict.seeds)) + (f" of {verdict.claim.seeds} declared" if len(verdict.seeds) != verdict.claim.seeds else ""),
            "clusters": f"{verdict.estimate.clusters:,}" if some and verdict.estimate.clusters else "–",
            "compute ratio": f"x{ratio:.2g}" if ratio else "–",
            "smallest detectable": _size(verdict, verdict.detectable) if len(verdict.seeds) > 1 else "–",
            "smallest that matters": _size(verdict, verdict.claim.smallest_effect),
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def _size(verdict: Verdict, value: float) -> str:
    return f"x{2**value:.3g}" if verdict.claim.scale == "log2" else f"{value:.3g}"


def claim_cards(found: Sequence[Verdict], manifest: dict | None = None) -> str:
    """HTML: per claim its source, scope, what was compared, the verdict's reason, and its limits; with the plan's manifest also the claim's history, from git."""
    cards, declared, past = [], {claim.id: claim for claim in read_claims()}, history(manifest) if manifest else {}
    for verdict in found:
        claim = verdict.claim
        lines = {
            "Asserted in": claim.source,
            "Scope": claim.scope,
            "Compared": "; ".join(f"{term.weight:+g} x {term}" for term in claim.terms),
            "Verdict": f"{verdict.verdict}: {verdict.reason}",
            "Power": _power(verdict) if len(verdict.seeds) > 1 else "",
            "Left out": f"seeds {', '.join(map(str, verdict.left_out))} lack a run" if verdict.left_out else "",
            "Limits": claim.limits,
            "History": past.get(claim.id, ""),
            "Changed": "claims.yaml reads differently now; this is the verdict on the claim as it stood when it was run" if declared.get(claim.id, claim) != claim else "",
        }
        rows = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in lines.items() if text)
        title = f"{SIGNS[verdict.verdict]} {claim.id}: {html.escape(claim.statement)}"
        cards.append(f'<details><summary><b style="color:{COLOURS[verdict.verdict]}">{title}</b></summary><dl>{rows}</dl></details>')
    return "\n".join(cards)


def waiting_claims(manifest: dict) -> str:
    """HTML, folded: the claims that are declared and not run yet, by the plan that would run them."""
    rows = [(plan, claim) for plan, claims in sorted(waiting(manifest).items(), key=lambda item: not item[0]) for claim in claims]
    text = "".join(f"<dt>{claim.id}, {f'plan {plan}' if plan else 'no experiment yet'}</dt><dd>{html.escape(claim.statement)}</dd>" for plan, claim in rows)
    return f"<details><summary>Declared, not run yet: {len(rows)} claims of other plans and of experiments to come</summary><dl>{text}</dl></details>" if rows else ""


def _power(verdict: Verdict) -> str:
    needed = stats.seeds_needed(verdict.estimate.effects, verdict.claim.smallest_effect)
    seeds = "more than a thousand seeds" if needed is None else f"{needed} seeds"
    return (
        f"these {len(verdict.seeds)} seeds and their clusters find an effect of {_size(verdict, verdict.detectable)} four times in five; by the spread of "
        f"its seeds alone, {_size(verdict, verdict.claim.smallest_effect)}, the smallest that matters, takes {seeds}"
    )


def across(results: Sequence[Result]) -> tuple[str, dict[str, np.ndarray]]:
    """The task's own score that most conditions have, and arm -> (conditions, seeds) of it for the arms that were run under all of them.

    A condition with one arm compares nothing and is left out, and so are seeds that an arm lacks somewhere."""
    if not results:
        return "", {}
    own = Counter(min(result.row["scores"], key=lambda score: ("/" in score, score)) for result in results).most_common(1)[0][0]
    frame = pd.DataFrame(
        [(result.row["arm"], json.dumps(result.condition, sort_keys=True), result.row["seed"], result.row["scores"][own]) for result in results if own in result.row["scores"]],
        columns=["arm", "condition", "seed", "score"],
    )
    frame = frame[frame.groupby("condition")["arm"].transform("nunique") > 1]
    table = frame.pivot_table(index="condition", columns=["arm", "seed"], values="score").dropna(axis=1)
    seeds = [seed for seed, found in table.columns.to_frame(index=False).groupby("seed")["arm"] if len(found) == table.columns.get_level_values("arm").nunique()]
    return own, {arm: table[arm][seeds].to_numpy() for arm in table.columns.get_level_values("arm").unique()} if len(table) > 1 and seeds else {}


def arm_points(results: Sequence[Result], score: str, condition: dict | None) -> dict[str, dict]:
    """arm -> mean, low, high of a score (95 %, two-way t over seeds and clusters) and mean costs, under one full condition; None: each arm under its own."""
    arms: dict[str, list[Result]] = {}
    for result in results:
        if condition in (None, result.condition) and score in result.row["scores"]:
            arms.setdefault(result.row["arm"], []).append(result)
    points = {}
    for arm, members in arms.items():
        mean, low, high = stats.t_interval(aligned_terms([(1.0, score, None, sorted(members, key=lambda result: result.row["seed"]))]))
        costs = {name: sum(result.row["cost"][name] for result in members) / len(members) for name in COSTS}
        points[arm] = {"mean": mean, "low": low, "high": high, "seeds": len(members)} | costs
    return points


def conditions(results: Sequence[Result]) -> list[dict]:
    """The distinct full conditions, in the order they were recorded."""
    return list({json.dumps(result.condition, sort_keys=True): result.condition for result in results}.values())


def condition_text(condition: dict | None, among: Sequence[dict]) -> str:
    """A condition in words: the one thing that tells it from all the others if there is one, else what varies among them, or everything when nothing does."""
    if condition is None:
        return "each arm under its own condition"
    varies = [name for name in condition if any(other.get(name) != condition[name] for other in among)] or list(condition)
    kinds = len({str(other) for other in among})
    varies = [name for name in varies if len({str(other.get(name)) for other in among}) == kinds > 1][:1] or varies
    return ", ".join(
        f"{name.replace('_', ' ')} {condition[name]:g}" if isinstance(condition[name], float) else f"{name.replace('_', ' ')} {condition[name]}"
        for name in varies
    )


def panels(found: Sequence[Verdict], results: Sequence[Result], *, most: int = 4) -> list[tuple[str, dict | None]]:
    """(score, condition) of the panels of the cost-quality figure: those the claims speak of, in their order. Without claims: the task's
    own score on the test split, in one panel where no arm was run under two conditions."""
    asked = [(term.score, term.condition) for verdict in found if verdict.estimate is not None for term in verdict.claim.terms if term.score]
    if not asked:
        asked = [(min(result.row["scores"], key=lambda score: ("/" in score, score)), result.condition) for result in results]
        if len({(result.row["arm"], str(result.condition)) for result in results}) == len({result.row["arm"] for result in results}) > 1:
            return [(asked[0][0], None)]
    chosen: dict[str, tuple[str, dict]] = {}
    for score, wanted in asked:
        for condition in conditions(results):
            if all(condition.get(name) == value for name, value in wanted.items()):
                chosen.setdefault(json.dumps([score, condition], sort_keys=True), (score, condition))
    return [panel for panel in chosen.values() if len(arm_points(results, *panel)) > 1][:most]


def arm_tables(results: Sequence[Result]) -> str:
    """HTML: per condition one folded table of all arms, every score with its interval and every cost."""
    parts, among = [], conditions(results)
    for condition in among:
        scores = dict.fromkeys(name for result in results if result.condition == condition for name in result.row["scores"])
        by_score = {score: arm_points(results, score, condition) for score in scores}
        lines = {}
        for score, points in by_score.items():
            for arm, point in points.items():
                line = lines.setdefault(arm, {"seeds": point["seeds"]} | {COSTS[name]: _cost(name, point[name]) for name in COSTS})
                line[score] = f"{point['mean']:.3f} [{point['low']:.3f}, {point['high']:.3f}]"
        frame = pd.DataFrame.from_dict(lines, orient="index").fillna("–")[[*by_score, "seeds", *COSTS.values()]]
        parts.append(f"<details><summary>{html.escape(condition_text(condition, among))}</summary>{table_html(frame)}</details>")
    return "\n".join(parts)


def _cost(name: str, value: float) -> str:
    return f"{value:.2e}" if name == "flops" else f"{value / 1e9:.2f}" if name == "peak_bytes" else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def failures_table(batch: runner.Batch) -> pd.DataFrame:
    """What did not finish: run, cell, kind, message, attempts; and what was never begun."""
    lines = [
        {"run": f["label"], "cell": f.get("cell", "?"), "kind": f["kind"], "message": f["message"].splitlines()[-1][:160], "attempts": str(f["attempts"])}
        for f in batch.failures
    ]
    lines += [{"run": label, "cell": "–", "kind": "not run", "message": "–", "attempts": "0"} for label in batch.missing]
    return pd.DataFrame(lines)


def provenance(batch: runner.Batch) -> pd.DataFrame:
    """Where the numbers come from: plan, code, data, versions and hardware, each with every value that occurred."""
    manifest = batch.manifest
    facts = {
        "plan": [f"{manifest['plan']['name']}: {manifest['plan']['title']} (profile {manifest['plan']['profile']})"],
        "runs": [f"{len(batch.headers)} finished, {len(batch.failures)} failed, {len(batch.missing)} not run; {sum(h['seconds'] for h in batch.headers):,.0f} s of work"],
        "git commit": [manifest["commit"][:12] + (" with uncommitted changes" if manifest["commit"].endswith("+") else "")],
        "code": [manifest["code_hash"][:12] + ("" if manifest["code_hash"] == code_hash() else " (not the code that is here now)")],
        "data": [f"{result.row['data']} {result.row['data_hash'][:12]}" for result in batch.results],
        "made": [f"{min((h['finished'] for h in batch.headers), default='–')} to {max((h['finished'] for h in batch.headers), default='–')}"],
        "processor": [
            f"{h['hardware']['processor']}, {h['hardware']['cores']} cores, {h['hardware']['memory_bytes'] / 1e9:.0f} GB, {h['hardware']['system']}"
            for h in batch.headers
        ],
        "GPU": [result.row["hardware"].get("gpu", "none") for result in batch.results],
        "versions": [", ".join(f"{name} {number}" for name, number in h["versions"].items()) for h in batch.headers],
    }
    return pd.DataFrame({"": {name: "; ".join(dict.fromkeys(values)) for name, values in facts.items()}})


def table_html(frame: pd.DataFrame) -> str:
    """A table as plain HTML, verdicts in their colour; it reads in a notebook, on the web and in the report."""
    text = frame.to_html(border=0, classes="mmkit", justify="left")
    text = re.sub(r"<td>(?=[^<]{60})", '<td style="min-width:20rem">', text)  # a sentence is not squeezed into a column of single words
    for name, sign in SIGNS.items():
        text = text.replace(f"<td>{sign} {name}</td>", f'<td style="color:{COLOURS[name]};white-space:nowrap"><b>{sign} {name}</b></td>')
    return text


def page(executed: Path, *, title: str) -> str:
    """An executed notebook as one HTML page: prose and outputs only, images inside, nothing fetched."""
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    notebook = nbformat.read(executed, as_version=4)
    notebook.cells = _for_readers(notebook.cells)
    body, _ = exporter.from_notebook_node(notebook)
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title><style>{style}</style>'
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
