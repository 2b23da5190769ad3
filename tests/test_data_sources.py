"""Recipes with files: from an address, by hand, from the mirror; terms, digests and what is reported."""

import hashlib
import re

import pytest
from data_server import serving
from data_toy import left, zipped

from mmkit.data import File, Recipe, commands, fetch, load, prepared
from mmkit.data.recipe import find_recipe, recipe_names
from mmkit.errors import MmkitError


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        yield server


def fill(writer, sources):
    for path in sorted(sources["photos.zip"].rglob("*.txt")):
        writer.text(writer.item(path.name, split="pool_text"), path.read_text())
    if "more.txt" in sources:
        writer.text(writer.item("more", split="pool_text"), sources["more.txt"].read_text())


@pytest.fixture
def recipe(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("MMKIT_MIRROR", raising=False)
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    server.body = zipped({"a.txt": "one", "sub/b.txt": "two", "__MACOSX/a.txt": "junk"})
    file = File(
        "photos.zip", server.url, sha256=hashlib.sha256(server.body).hexdigest(), mirror="set/texts", unpack=True
    )
    about = {
        "title": "The set",
        "task": "none",
        "licence": "CC BY 4.0",
        "terms": "be kind",
        "citation": "Somebody 2013",
        "version": 1,
    }
    return Recipe(name="set", prepare=fill, files=(file,), **about)


def test_a_downloaded_archive_becomes_a_set_and_the_terms_are_shown_once(recipe, server, tmp_path, capsys):
    ds = load(recipe)
    assert ds.texts["text"].tolist() == ["one", "two"]
    assert ds.card["sources"] == [
        {"name": "photos.zip", "from": server.url, "sha256": recipe.files[0].sha256, "checked": True}
    ]
    shown = capsys.readouterr().err
    assert shown.count("terms: be kind") == 1 and "licence: CC BY 4.0" in shown and "cite: Somebody 2013" in shown
    assert left(tmp_path / "data/raw/set") == ["photos.zip"]
    prepared.prepare(recipe, force=True)
    assert "terms" not in capsys.readouterr().err and len(server.log) == 1


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    texts = tmp_path / "mirror/set/texts"
    texts.mkdir(parents=True)
    for name, content in {"a.txt": "one", "b.txt": "two"}.items():
        (texts / name).write_text(content)
    sums = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./set/texts/{path.name}\n"
        for path in sorted(texts.iterdir())
    )
    (tmp_path / "mirror/SHA256SUMS").write_text(sums)
    return texts


def test_the_mirror_comes_before_the_network(recipe, server, mirror, monkeypatch, tmp_path, capsys):
    from_network = load(recipe).content
    monkeypatch.setenv("MMKIT_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path / "other"))
    server.log.clear()
    ds = load(recipe)
    assert (
        ds.content == from_network
        and server.log == []
        and ds.card["sources"][0]["from"] == "$MMKIT_MIRROR/set/texts"
        and ds.card["sources"][0]["checked"]
    )
    assert str(tmp_path) not in (ds.root / "card.json").read_text()
    assert left(tmp_path / "other") == [".set.lock", "set"]


def test_a_mirror_that_lists_nothing_is_not_called_checked(recipe, mirror, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MMKIT_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror/SHA256SUMS").unlink()
    assert not load(recipe).card["sources"][0]["checked"]
    commands.card("set")
    assert "held against no published digest" in capsys.readouterr().out


def test_a_mirror_without_the_file_is_passed_over(recipe, server, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("MMKIT_MIRROR", str(tmp_path / "empty"))
    assert load(recipe).card["sources"][0]["from"] == server.url


def test_a_mirror_that_is_not_what_it_lists(recipe, mirror, monkeypatch, tmp_path):
    monkeypatch.setenv("MMKIT_MIRROR", str(tmp_path / "mirror"))
    (mirror / "a.txt").write_text("onf")
    message = (
        "1 files of the mirror .* are missing or differ from its SHA256SUMS, first set/texts/a.txt: copy them again"
    )
    with pytest.raises(MmkitError, match=message):
        load(recipe)
    (mirror / "a.txt").unlink()
    with pytest.raises(MmkitError, match=message):
        load(recipe)
    monkeypatch.setenv("MMKIT_MIRROR", str(tmp_path / "nowhere"))
    with pytest.raises(MmkitError, match="MMKIT_MIRROR names '.*nowhere', which is no folder: correct it, or unset it"):
        load(recipe)


def test_an_optional_file_that_cannot_be_had_is_reported(recipe, server):
    optional = File("more.txt", server.url.replace("photos.bin", "more"), optional=True)
    server.script = ["ok", 404]
    ds = load(Recipe(**(vars(recipe) | {"files": (*recipe.files, optional)})))
    assert (
        len(ds) == 2
        and ds.card["reported"][0]["name"] == "more.txt"
        and "optional, left out: more.txt could not be downloaded" in ds.card["reported"][0]["reason"]
    )
    with pytest.raises(
        MmkitError,
        match="unknown text language of 'set' 'zh'.*; more.txt could not be had when it was prepared, 'mmkit data "
        "prepare set --force' tries again",
    ):
        ds.texts_of([0], language="zh")


def test_a_refused_archive_leaves_no_set_and_nothing_unpacked(recipe, server, tmp_path):
    server.body = zipped({"first.txt": "x", "../evil.txt": "x"})
    with pytest.raises(MmkitError, match="refused"):
        load(Recipe(**(vars(recipe) | {"files": (File("photos.zip", server.url, unpack=True),)})))
    assert left(tmp_path / "data") == [".set.lock", "raw"] and left(tmp_path / "data/raw/set") == ["photos.zip"]


def test_every_file_of_every_recipe_that_has_an_address_has_a_digest_and_a_size():
    for name in recipe_names():
        for file in find_recipe(name).files:
            digest = re.fullmatch("[0-9a-f]{64}", file.sha256 or "") or re.fullmatch("[0-9a-f]{32}", file.md5 or "")
            assert digest and (file.size or file.limit < 2_000_000_000) if file.url else file.page, (
                f"{name}: {file.name}"
            )


def test_a_file_without_a_published_digest_is_brought_by_hand(recipe, tmp_path, server):
    file = File("photos.zip", "", page="https://example.org/photos", unpack=True)
    by_hand = Recipe(**(vars(recipe) | {"files": (file,)}))
    message = (
        "photos.zip has to be brought by hand, .*: get it from https://example.org/photos and put it at .*photos.zip"
    )
    with pytest.raises(MmkitError, match=message):
        load(by_hand)
    (tmp_path / "data/raw/set/photos.zip").write_bytes(server.body)
    source = load(by_hand).card["sources"][0]
    assert source["from"] == "https://example.org/photos" and not source["checked"] and server.log == []
