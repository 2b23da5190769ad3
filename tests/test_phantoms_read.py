"""Whatever a report of `phantoms` says can be read from the picture, but for what `hedge` makes uncertain."""

import re
from functools import cache

import pytest
from phantom_reader import Reader

from data_recipes import phantoms
from data_recipes.phantoms import FINDINGS, SEVERITIES

SIZES = dict(zip(("small", "moderate", "large"), SEVERITIES))
SIDE, SIZE = "(?P<side>right|left)", "(?P<size>small|moderate|large)"
HEART = "(?P<severity>mild|moderate|severe)"
LUNG = "(?P<finding>opacity|effusion|nodule)"
ANY = "(?P<finding>opacity|effusion|nodule|cardiomegaly)"
SENTENCES = {
    "present": (rf"{SIZE} {LUNG} in the {SIDE} lung", rf"the {SIDE} lung shows {SIZE} {LUNG}")
    + (rf"{HEART} (?P<finding>cardiomegaly)", rf"the heart shows {HEART} (?P<finding>cardiomegaly)"),
    "absent": (rf"no {ANY}", rf"{ANY} is not seen"),
    "uncertain": tuple(
        frame.format(rf"{ANY}(?: on the {SIDE})?")
        for frame in ("possible {}", "cannot exclude {}", "there may be {}", "{} is not excluded")
    ),
    "nothing": ("the lungs are clear", "normal chest"),
}


def report_facts(text: str) -> dict[str, tuple[str, str, str]]:
    """By finding, what is said of it, its side and its severity; a sentence of no known wording is an error."""
    found = {}
    for sentence in text.removesuffix(" .").split(" . "):
        read = [(said, m) for said, ways in SENTENCES.items() for way in ways if (m := re.fullmatch(way, sentence))]
        assert len(read) == 1, f"{sentence!r} is read in {len(read)} ways"
        said, told = read[0][0], read[0][1].groupdict()
        if said != "nothing":
            severity = told.get("severity") or SIZES.get(told.get("size"), "")
            assert told["finding"] not in found, f"{text!r} tells {told['finding']} twice"
            found[told["finding"]] = (said, told.get("side") or "", severity)
    return found


@cache
def reader(other):
    return Reader(other)


@pytest.mark.parametrize("seed, hedge, size", [(5, 0.4, 10), (6, 0.0, 3)])
def test_every_finding_of_every_report_is_read_from_its_picture(seed, hedge, size):
    knobs = {"train": 0, "val": 0, "test": size, "ood": size, "pool": size // 2, "seed": seed, "hedge": hedge}
    images, items, texts = phantoms.generate(**phantoms.RECIPE.knobs | knobs)
    reports, said = dict(texts[texts["role"] == "report"][["item", "text"]].to_numpy()), set()
    for row, item in items[items["image"] >= 0].iterrows():
        seen = reader(item["split"] == "ood_hospital").read(images[item["image"], ..., 0])
        for finding in FINDINGS:
            heart = finding == "cardiomegaly"
            there = item[f"label_{finding}"] == 1
            true = ("" if heart else item[f"side_{finding}"], item[f"severity_{finding}"]) if there else ("", "")
            assert seen[finding] == true, f"{finding} of {item['id']}: drawn {true}, read {seen[finding]}"
        for finding, (how, *where) in report_facts(reports.get(row, "normal chest .")).items():
            if how == "uncertain":
                assert hedge and seen[finding] in (("", ""), (where[0], "mild")), f"{finding} of {item['id']}"
            else:
                assert seen[finding] == tuple(where), f"{finding} of {item['id']}: said {where}, read {seen[finding]}"
            said.add(how)
    assert said == {"present", "absent", "uncertain"} if hedge else {"present", "absent"}
