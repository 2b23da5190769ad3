"""The table of your own captions, read with nothing dropped in silence: CSV, TSV or JSONL to texts by column."""

import ast
import csv
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from mmkit.data.rules import require_letters
from mmkit.errors import MmkitError, unknown

OPTIONAL = ("group", "split", "language")
FIELD = re.compile(rf"image|caption|label(_.+)?|{'|'.join(OPTIONAL)}")
SPLITS = {"training": "train", "dev": "val", "valid": "val", "validation": "val", "testing": "test"}
SPLITS |= {name: name for name in ("train", "val", "test")}
# What others call a field; a column of such a name is asked about, for without it the splits would be other ones.
PERSON = "patient|subject|participant|person|case|study|series|accession|mrn|pid"
OTHER_NAMES = {
    "group": rf"(.*_)?({PERSON}|grp|cluster)(_?(instance|id|uid|no|nr|number|name|code))*",
    "split": r"(.*_)?(split|fold|subset|partition)s?(_.*)?|(data_?)?set",
    "language": r"(.*_)?(lang|language|locale|lng)(_.*)?",
    "label": r"labels?(_.*)?",
}
SHEET = "a spreadsheet"
NO_TABLES = {".json": "JSON", ".parquet": "Parquet", ".ods": SHEET, ".xls": SHEET, ".xlsx": SHEET}
UNKNOWN = {"", "-1", "-1.0", "nan", "n/a", "na", "#n/a", "<na>", "null", "nat"}  # for a label that nobody knows


def read_table(path: Path, columns: dict[str, str]) -> tuple[pd.DataFrame, list[str]]:
    """The table's fields image, caption, and those of label, label_*, group, split, language that it has, as text.

    columns: field -> the table's own name. The index is the row as a spreadsheet counts it, of JSONL the line. Returns
    also the columns that are none of these and are not used. Raises MmkitError for whatever cannot be read, and for a
    column that is nearly called like a field.
    """
    if not path.is_file():
        raise MmkitError(f"there is no table {str(path)!r}: pass a CSV, TSV or JSONL file as table=")
    if kind := NO_TABLES.get(path.suffix.lower()):
        raise MmkitError(f"{path.name} is {kind}: save it as CSV, or as JSONL with one object a line")
    try:
        table = _read_jsonl(path) if path.suffix.lower() in (".jsonl", ".ndjson") else _read_csv(path)
    except UnicodeDecodeError as error:
        raise MmkitError(f"{path.name} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    for field_name, column in columns.items():
        if not FIELD.fullmatch(field_name):
            raise unknown("table field", field_name, ("image", "caption", "label", "label_NAME", *OPTIONAL))
        if column not in table:
            raise unknown(f"column of {path.name}", column, table)
    table = table.rename(columns={column: field_name for field_name, column in columns.items()})
    for needed in ("image", "caption"):
        if needed not in table:
            hint = unknown(f"column of {path.name}", needed, table)
            raise MmkitError(f"{hint}; name the right one with {needed}=COLUMN")
    kept = [name for name in table if FIELD.fullmatch(name)]
    twice = next((name for name in kept if kept.count(name) > 1), None)
    if twice:
        remedy = f"give the others another name in its header, or leave out {twice}=COLUMN"
        raise MmkitError(f"{path.name} has {kept.count(twice)} columns for {twice!r}: {remedy}")
    unused = [name for name in table if name not in kept]
    _require_no_near_names(path, table, kept, unused)
    _require_plain(path, table[kept])
    cells = table[kept].explode("caption")
    texts = cells.where(cells.notna(), "").map(str).apply(_stripped)
    texts = texts[(texts != "").any(axis=1)]
    if not len(texts):
        raise MmkitError(f"{path.name} has no rows: expected one row a caption")
    empty = texts.index[(texts[["image", "caption"]] == "").all(axis=1)]
    if len(empty):
        raise MmkitError(f"{path.name}, row {empty[0]} has neither image nor caption: name one, or remove the row")
    return texts, unused


def label_column(values: pd.Series) -> pd.Series:
    """Labels as whole numbers where they count from 0 without a gap, or are 0 and 1; else as names.

    What tables write for unknown ("", "-1", "nan", "N/A") becomes -1 or "".
    """
    known = values.where(~values.str.lower().isin(UNKNOWN), "")
    plain = known.str.replace(r"^(\d+)\.0$", r"\1", regex=True)  # a column with gaps writes 1.0 for 1
    found = set(plain) - {""}
    if found and (found <= {"0", "1"} or found == {str(number) for number in range(len(found))}):
        return plain.replace("", "-1").astype("int64")
    return known


def _require_no_near_names(path: Path, table: pd.DataFrame, kept: list[str], unused: list[str]) -> None:
    """Raises MmkitError for a column that would be left out and is nearly called like a field that the table lacks, or
    holds nothing but names of splits."""
    there = {field.split("_")[0] for field in kept}
    lacking = [name for name in ("label", *OPTIONAL) if name not in there]
    for column in unused:
        plain = re.sub(r"[\W_]+", "_", column.lower()).strip("_")
        near = [name for name in lacking if re.fullmatch(OTHER_NAMES[name], plain)]
        near += get_close_matches(plain, lacking, n=1, cutoff=0.75)
        held = {str(value).strip().lower() for value in table.loc[:, [column]].to_numpy().ravel()} - {""}
        near += ["split"] if "split" in lacking and len(held) > 1 and held <= set(SPLITS) else []
        if near:
            remedy = f"use it with --column {near[0]}={column}, or call it something else if it is not that"
            raise MmkitError(f"{path.name} has a column {column!r}, which looks like {near[0]!r}: {remedy}")


def _require_plain(path: Path, table: pd.DataFrame) -> None:
    """Raises MmkitError for a cell that is a list or an object; a caption may be a list of texts."""
    for name in table:
        for row, value in table[name].items():
            nested = value if name == "caption" and isinstance(value, list) else [value]
            strange = next((inner for inner in map(_written, nested) if isinstance(inner, list | dict)), None)
            if strange is not None:
                what = "a list" if isinstance(strange, list) else "an object"
                remedy = "write a text; only 'caption' may be a list of texts, and in JSONL alone"
                raise MmkitError(f"{path.name}, line {row}: {name!r} is {what}: {remedy}")


def _written(value: object) -> object:
    """The list or object that a text is, in JSON or in Python; any other value as it is."""
    if isinstance(value, str) and re.fullmatch(r"\s*(\[.*\]|\{.*\})\s*", value, re.S):
        for read in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                return read(value.strip())
    return value


def _stripped(column: pd.Series) -> pd.Series:
    return column.str.strip()


def _read_csv(path: Path) -> pd.DataFrame:
    with open(path, encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        if header.lstrip().startswith(("[", "{")):
            raise MmkitError(f"{path.name} is JSON: write one object a line and call it {path.stem}.jsonl")
        file.seek(0)
        reader = csv.reader(file, delimiter=max(",;\t", key=header.count), strict=True)
        names: list[str] = []
        rows: dict[int, list[str]] = {}
        for count, row in enumerate(_records(path, reader), 1):
            if not names:
                names = [name.strip() for name in row]
                if len(names) == 1:
                    remedy = "begin with the names of columns, parted by comma, semicolon or tab"
                    raise MmkitError(f"{path.name} has a single column, {names[0][:60]!r}: {remedy}")
            elif any(cell.strip() for cell in row):
                if len(row) != len(names):
                    found = f"line {reader.line_num} has {len(row)} fields, the header {len(names)}"
                    raise MmkitError(f"{path.name}, {found}: put a caption that holds the separator in double quotes")
                rows[count] = row
    return pd.DataFrame(list(rows.values()), index=list(rows), columns=names, dtype=object)


def _records(path: Path, reader) -> Iterator[list[str]]:
    """The cells of each record. Raises MmkitError with the line on which a broken one begins."""
    while True:
        begins = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = "a quote is opened and not closed" if "end of data" in str(error) else error
            reason = f"{error}; is a quote opened and not closed?" if "field limit" in str(error) else reason
            remedy = "close it, and write a quote inside a caption twice"
            raise MmkitError(f"{path.name}, line {begins} cannot be read ({reason}): {remedy}") from error
        yield row


def _read_jsonl(path: Path) -> pd.DataFrame:
    rows: dict[int, dict] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):  # texts may hold U+2028
        if line.strip():
            rows[number] = _object(path, number, line)
    return pd.DataFrame.from_dict(rows, orient="index", dtype=object)  # object keeps 1 from becoming 1.0 beside a gap


def _object(path: Path, number: int, line: str) -> dict:
    """The object of one line. Raises MmkitError for anything else."""
    try:
        row = json.loads(line, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        if line.lstrip().startswith("["):
            reason = "an array over several lines"
        raise MmkitError(f"{path.name}, line {number} is not JSON ({reason}): expected one object a line") from error
    if not isinstance(row, dict):
        expected = 'an object such as {"image": "a.jpg", "caption": "..."}'
        raise MmkitError(f"{path.name}, line {number} is a {type(row).__name__}: expected {expected}")
    require_letters(json.dumps(row, ensure_ascii=False), f"{path.name}, line {number}")
    return {name.strip(): value for name, value in row.items()}


def _without_repeats(pairs: list[tuple]) -> dict:
    names = [name.strip() for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is there twice")
    return dict(pairs)
