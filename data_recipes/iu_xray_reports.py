"""Indiana University's chest X-ray reports: 3,955 reports, texts alone, for a text encoder that never saw an image.

All are in `pool_text`, a report an item: what was asked (role `indication`), what was seen (`findings`), what it
means (`impression`). Names, dates and places are XXXX in the original. About one report in seven has no findings and
is kept for its impression; one with neither is left out and named on the card. `label_normal` is 1 where the indexers
wrote nothing but "normal", -1 where they did not index.
"""

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from mmkit.data import File, Recipe, Writer
from mmkit.data.fetch import Sources
from mmkit.errors import MmkitError

ROLES = {"INDICATION": "indication", "FINDINGS": "findings", "IMPRESSION": "impression"}


def reports(folder: Path, writer: Writer) -> Iterator[tuple[str, dict[str, str], list[str]]]:
    """Name, texts by role and index terms of each usable report, in the order of their numbers.

    The others go to `writer.report`. A document that declares a type or an entity is refused: no report does, and it is
    how XML is made to read other files or to blow up.
    """
    paths = sorted(folder.rglob("*.xml"), key=lambda path: (len(path.stem), path.stem))
    if not paths:
        raise MmkitError(f"{folder} holds no .xml: it is not the archive NLMCXR_reports.tgz")
    for path in paths:
        try:
            root = fromstring(path.read_bytes(), forbid_dtd=True)
        except (ParseError, DefusedXmlException) as error:
            writer.report(path.name, f"no readable report: {error}")
            continue
        found = {
            element.get("Label"): " ".join("".join(element.itertext()).split()) for element in root.iter("AbstractText")
        }
        texts = {role: found[label] for label, role in ROLES.items() if found.get(label)}
        uid = root.find("uId")
        if uid is None or not uid.get("id"):
            writer.report(path.name, "a report without an id")
        elif texts.keys() <= {"indication"}:
            writer.report(path.name, f"report {uid.get('id')} has neither findings nor impression")
        else:
            yield uid.get("id"), texts, [element.text.strip() for element in root.iter("major") if element.text]


def prepare(writer: Writer, sources: Sources) -> None:
    for name, texts, terms in reports(sources["NLMCXR_reports.tgz"], writer):
        normal = -1 if not terms or terms == ["No Indexing"] else int(terms == ["normal"])
        item = writer.item(name, split="pool_text", label_normal=normal, terms="; ".join(terms))
        for role, text in texts.items():
            writer.text(item, text, role=role)


ARCHIVE = File(
    "NLMCXR_reports.tgz",
    "https://openi.nlm.nih.gov/imgs/collections/NLMCXR_reports.tgz",
    size=1112632,
    md5="fa5215d222be4eafc86e546ddc1429ab",
    mirror="iu_xray_reports/NLMCXR_reports.tgz",
    unpack=True,
)
RECIPE = Recipe(
    name="iu_xray_reports",
    title="Indiana University chest X-ray reports: 3,955 reports in sections, without images",
    task="pretraining of a text encoder",
    licence="CC BY-NC-ND 4.0",
    terms="non-commercial; pass on only the unmodified archive, with its source. Not for diagnosis.",
    citation="D. Demner-Fushman, M. D. Kohli, M. B. Rosenman et al.: Preparing a collection of radiology "
    "examinations for distribution and retrieval. JAMIA 23(2), 2016. Open-i, U.S. National Library of "
    "Medicine.",
    version=1,
    files=(ARCHIVE,),
    prepare=prepare,
)
