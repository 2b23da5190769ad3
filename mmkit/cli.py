"""The command line: each command a thin call. An error of use is one line on standard error and exit code 2."""

import os
import subprocess
import sys
import traceback
from datetime import datetime
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from mmkit import terminal
from mmkit.data.folders import named_folder
from mmkit.errors import MmkitError, printable
from mmkit.files import new_file

# What takes time to import is imported inside the commands, so that `mmkit --help` answers at once.
app = typer.Typer(
    help="A teaching and reproduction kit for multimodal AI.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="List, prepare, add and check data sets.", no_args_is_help=True, rich_markup_mode=None)
notebook = typer.Typer(help="Check and refresh notebooks (for authors).", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data, name="data")
labs = typer.Typer(
    help="Student and solution copies; assignments graded by nbgrader (for lecturers).",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(notebook, name="notebook")
app.add_typer(labs, name="labs")
runs = typer.Typer(
    help="The runs that were made: list, show, compare, clean.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(runs, name="runs")

FOLDERS = (
    "MMKIT_DATA",
    "MMKIT_MIRROR",
    "MMKIT_RUNS",
)  # absolute from here on: a notebook's kernel works in another folder
Name = Annotated[str, typer.Argument(help="Name of a data set.")]
File = Annotated[str, typer.Argument(help="A notebook: its number, name or path.")]
Course = Annotated[
    Path | None,
    typer.Option(help="Folder of the course: source, release, submitted, autograded; runs/labs by default."),
]
Pairs = Annotated[
    list[str],
    typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="A parameter of the notebook; may be repeated."),
]
Knobs = Annotated[
    list[str], typer.Argument(metavar="[KNOB=VALUE]...", help="Knobs of the recipe that differ from their defaults.")
]
Key = Annotated[str, typer.Argument(help="Key of a run, or how it begins.")]
Plan = Annotated[str, typer.Argument(help="Name of a plan in notebooks/plans/.")]
Curves = Annotated[
    Path | None,
    typer.Option(
        help="Write the training curves of what is run there; look at them with 'tensorboard --logdir FOLDER'.",
        metavar="FOLDER",
    ),
]


def _pairs(texts: list[str], example: str = "-p data=scenes") -> dict[str, str]:
    """`["a=1", "b=x=y"]` -> `{"a": "1", "b": "x=y"}`. Raises MmkitError."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise MmkitError(f"{text!r} is not NAME=VALUE: write for example {example}")
        if name.strip() in pairs:
            raise MmkitError(f"{name.strip()!r} is given twice, as {pairs[name.strip()]!r} and {value!r}: keep one")
        pairs[name.strip()] = value
    return pairs


@app.command()
def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what is on this machine and whether the kit can run; paste it into bug reports."""
    from mmkit import doctor as doctor_

    rows = doctor_.diagnose()
    print(doctor_.as_json(rows) if json else doctor_.table(rows))
    raise typer.Exit(any(row.state == "broken" for row in rows))


@app.command()
def run(
    notebook: File,
    parameter: Pairs = [],
    profile: Annotated[str, typer.Option(help="smoke (seconds), lab (the defaults) or full (real data).")] = "lab",
    out: Annotated[
        Path | None, typer.Option(help="Where the executed notebook goes; runs/interactive/ by default.")
    ] = None,
    tensorboard: Curves = None,
) -> None:
    """Run one notebook with other parameters and keep the result."""
    from mmkit import notebooks
    from mmkit.repro import paths

    path = notebooks.resolve(notebook)
    values = notebooks.checked(path, _pairs(parameter), profile)
    name = f"{path.stem}-{profile}-{datetime.now():%Y%m%d-%H%M%S}"
    start = datetime.now()
    with new_file(out or paths.runs() / "interactive" / f"{name}.ipynb", numbered=not out) as place:
        _curves(tensorboard and tensorboard / place.stem)
        if parameter:
            print(", ".join(f"{name} = {value!r}" for name, value in values.items()))
        notebooks.execute(path, place, values, profile=profile, progress=sys.stderr.isatty())
    seconds = (datetime.now() - start).total_seconds()
    print(f"{path.stem} ({profile}) ran in {seconds:.0f} s, peak {notebooks.peak_gigabytes():.1f} GB")
    print(f"the executed notebook: {place}")


@app.command()
def reproduce(
    plan: Plan = "head_to_head",
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at a time; by default one for each core.")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Hand the runs to this Dask scheduler, for example tcp://127.0.0.1:8786."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and the time they should take, run nothing.")
    ] = False,
    tensorboard: Curves = None,
) -> None:
    """Run a plan and write its report; runs that are finished are not run again. Exit code 1 when runs failed."""
    from mmkit.published import held

    _curves(tensorboard)
    raise typer.Exit(held.reproduce(plan, workers=workers, scheduler=scheduler, dry_run=dry_run))


def _curves(folder: Path | None) -> None:
    """Tell the runs where their training curves go. Raises MmkitError."""
    if folder and not find_spec("tensorboard"):
        raise MmkitError("--tensorboard needs TensorBoard: pip install -e '.[tensorboard]'")
    if folder:
        os.environ["MMKIT_TENSORBOARD"] = os.path.abspath(os.path.expanduser(folder))


@runs.command("list")
def runs_list(
    plan: Annotated[str | None, typer.Argument(help="Name of a plan; without it, the plans that have runs.")] = None,
) -> None:
    """One line a run: done, failed or to do, its key, time and parameters."""
    from mmkit.repro import browse

    lines = browse.runs(plan) if plan else chain(browse.plans(), ["", "published:"], browse.published())
    print("\n".join(lines))


@runs.command("show")
def runs_show(key: Key) -> None:
    """Everything known of one run: parameters, versions, hardware, scores, standard error, failure."""
    from mmkit.repro import browse

    print("\n".join(browse.show(key)))


@runs.command("diff")
def runs_diff(first: Key, second: Key) -> None:
    """What differs between two runs."""
    from mmkit.repro import browse

    print("\n".join(browse.diff(first, second)))


@runs.command("clean")
def runs_clean(
    plan: Plan, yes: Annotated[bool, typer.Option("--yes", help="Remove, instead of saying what would be.")] = False
) -> None:
    """Remove runs that the plan does not ask for any more (other code or parameters), and failed ones."""
    from mmkit.repro import browse

    print("\n".join(browse.tidy(plan, really=yes)))


@app.command("report")
def report_(
    plan: Plan = "head_to_head",
    out: Annotated[Path | None, typer.Option(help="The HTML file; runs/PLAN/report.html by default.")] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Publish the records in notebooks/records/.")] = False,
    why: Annotated[str, typer.Option(metavar="SENTENCE", help="Why a published verdict changes, for its card.")] = "",
    platform: Annotated[str, typer.Option(metavar="NAME", help="Publish beside, as of another platform.")] = "",
    readme: Annotated[bool, typer.Option("--readme", help="Only write what README says was found.")] = False,
) -> None:
    """Write the report of the runs there are: claims, intervals, costs, environment."""
    from mmkit.published import publishing

    print("\n".join(publishing.write(plan, out=out, publish=publish, why=why, platform=platform, readme=readme)))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(context: typer.Context) -> None:
    """Open JupyterLab on the notebooks; further options are JupyterLab's, for example --no-browser."""
    from mmkit import notebooks

    command = [sys.executable, "-m", "jupyterlab", *context.args]
    if os.name == "posix":  # become JupyterLab: a signal that ends this process must not leave a server listening
        os.chdir(notebooks.folder())
        os.execv(sys.executable, command)
    raise typer.Exit(subprocess.run(command, cwd=notebooks.folder()).returncode)


@data.command("list")
def data_list() -> None:
    """What can be loaded and what is prepared."""
    from mmkit.data import commands

    commands.list_()


@data.command("prepare")
def data_prepare(
    name: Name, knobs: Knobs = [], force: Annotated[bool, typer.Option("--force", help="Make it again.")] = False
) -> None:
    """Generate or download a data set and bring it into the prepared form."""
    from mmkit.data import commands

    commands.prepare(name, knobs, force=force)


@data.command("add")
def data_add(
    name: Name,
    images: Annotated[Path, typer.Option(help="Folder of images.")],
    table: Annotated[
        Path,
        typer.Option(help="CSV, TSV or JSONL with image, caption and, if you like, label, group, split, language."),
    ],
    size: Annotated[int, typer.Option(help="Images become SIZE x SIZE pixels.")] = 160,
    column: Annotated[
        list[str],
        typer.Option(metavar="FIELD=COLUMN", help="Your table's own name for a column, for example caption=report."),
    ] = [],
    allow_unpaired: Annotated[
        bool, typer.Option("--allow-unpaired", help="Images without caption and captions without image become pools.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check only, write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace your set of this name.")] = False,
    identifiers: Annotated[
        str, typer.Option(help="DICOM that names a patient: refuse it, or drop all but its pixels.")
    ] = "refuse",
    card: Annotated[
        list[str], typer.Option(metavar="FIELD=TEXT", help="For the card: title, licence, terms, citation.")
    ] = [],
) -> None:
    """Make a data set of your own images and captions."""
    from mmkit.data import commands

    options = {
        "size": size,
        "allow_unpaired": allow_unpaired,
        "dry_run": dry_run,
        "force": force,
        "identifiers": identifiers,
    }
    commands.add(
        name,
        images=images,
        table=table,
        columns=_pairs(column, "--column caption=report"),
        card=_pairs(card, "--card licence=CC0"),
        **options,
    )


@data.command("check")
def data_check(
    name: Annotated[str | None, typer.Argument(help="Name of a data set; all of them by default.")] = None,
    knobs: Knobs = [],
) -> None:
    """Compare prepared sets with the hashes on their cards."""
    from mmkit.data import commands

    commands.check(name, knobs)


@data.command("card")
def data_card(name: Name, knobs: Knobs = []) -> None:
    """Print where a set comes from, its terms, sizes and hashes."""
    from mmkit.data import commands

    commands.card(name, knobs)


@notebook.command("check")
def notebook_check(files: Annotated[list[str], typer.Argument(help="Notebooks by number, name or path.")]) -> None:
    """Check notebooks against the contract; exit code 1 when one breaks it."""
    from mmkit import notebooks
    from mmkit.teach import contract

    breaches = [breach for file in files for breach in contract.check(notebooks.resolve(file))]
    for breach in breaches:
        print(breach)
    if not breaches:
        print(f"{len(files)} of {len(files)} notebooks keep the contract")
    raise typer.Exit(bool(breaches))


@notebook.command("refresh")
def notebook_refresh(file: File) -> None:
    """Run a notebook with its defaults and write its outputs in place."""
    from mmkit import notebooks
    from mmkit.teach import refresh

    path = notebooks.resolve(file)
    print(f"{path.name}: {refresh.refresh(path)}")


@labs.command("views")
def labs_views(
    files: Annotated[list[str], typer.Argument(help="Notebooks by number, name or path; all of them by default.")] = [],
) -> None:
    """Bring the student, solution and code-only copies in notebooks/views/ up to date."""
    from mmkit import notebooks
    from mmkit.teach import views

    changed = [] if files else [file.unlink() or file for file in views.orphans(notebooks.folder())]
    for path in map(notebooks.resolve, files or sorted(notebooks.folder().glob("[0-9][0-9]_*.ipynb"))):
        changed += views.write(path)
    print(f"{len(changed)} copies changed in notebooks/views/")


@labs.command("build")
def labs_build(file: File, course: Course = None) -> None:
    """Make an nbgrader assignment of a notebook."""
    from mmkit import notebooks
    from mmkit.teach import labs

    print(f"hand out {labs.build(notebooks.resolve(file), course or _course())}")


@labs.command("grade")
def labs_grade(
    file: File,
    course: Course = None,
    container: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE",
            help="Run the students' code in containers of this image (podman or docker), without network.",
        ),
    ] = None,
) -> None:
    """Mark what was handed in with nbgrader and print the scores.

    Without --container the students' code runs with your rights. Exit code 1 when one could not be graded to its end.
    """
    from mmkit import notebooks
    from mmkit.teach import labs

    graded = labs.grade(notebooks.resolve(file).stem, course or _course(), image=container)
    print(labs.table(graded.scores))
    for text in (*graded.problems, *graded.notes):
        typer.echo(printable(text), err=True)
    raise typer.Exit(bool(graded.problems))


def _course() -> Path:
    from mmkit.repro import paths

    return paths.runs() / "labs"


def main() -> None:
    sys.stdout, sys.stderr = (terminal.fit(stream) for stream in (sys.stdout, sys.stderr))
    try:
        os.environ |= {name: str(folder) for name in FOLDERS if (folder := named_folder(name))}
        app()
    except MmkitError as error:
        print(f"mmkit: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader has seen enough: `mmkit runs list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except OSError as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).is_relative_to(Path(__file__).parent)][-1]
        where = f"({Path(own.filename).name}, line {own.lineno})"
        remedy = "correct the path, or free space or point --out, MMKIT_RUNS or MMKIT_DATA at a folder you can write"
        print(f"mmkit: {printable(f'{type(error).__name__}: {error}')} {where}: {remedy}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
