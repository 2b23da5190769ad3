# What can a split or a flip do to a score?
# The code of 03_data_and_augmentation.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import re
from dataclasses import replace

import numpy as np
import torch
from IPython.display import Markdown, display
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2

import mmkit
from mmkit.core import retrieval_ranks
from mmkit.data.recipe import find_recipe, recipe_names
from mmkit.data.rules import validate
from mmkit.models import CNN, Concat, DualEncoder, Multimodal, TextTransformer
from mmkit.models.text import vocabulary
from mmkit.tasks import Retrieval
from mmkit.teach import plots
from mmkit.training import Batch, Batches, batches, choose, cross_entropy, seeded, stream, train

# %% parameters
data: str = "scenes"  # data set: a recipe or one of your own
label: str = "label_answer"  # column of items that the first experiment predicts from the image
visits: list[int] = [1, 4, 8]  # images of one patient, one experiment each
images: int = 576  # images of the first experiment; a third of them is the test split
pairs: int = 512  # training pairs of the second experiment
epochs: int = 8  # passes over them, in both
seeds: list[int] = [0, 1, 2]  # every training is run once with each

# %% format
dataset = mmkit.load(data)
print("images", dataset.images.shape, dataset.images.dtype, "| items", dataset.items.shape, end="")
print(" | texts", dataset.texts.shape, "| labels:", ", ".join(dataset.label_columns))
print(", ".join(f"{split} {count:,}" for split, count in dataset.splits.items()))
for recipe in map(find_recipe, recipe_names()):
    print(f"{recipe.name}: {recipe.licence} | {re.split('[;.]', recipe.terms)[0]}")

# %% refusal
train_rows, test = dataset.rows("train"), dataset.rows("test")
moved = dataset.items.copy()
moved.loc[train_rows[0], ["split", "group"]] = ["test", moved.loc[train_rows[1], "group"]]
try:
    validate(moved, dataset.texts, images=len(dataset.images))
except mmkit.MmkitError as error:
    print(error)


def image_bytes(*splits):
    """The images of some splits, byte by byte."""
    rows = np.concatenate([dataset.rows(split) for split in splits if split in dataset.splits])
    return {dataset.images[place].tobytes() for place in dataset.array_rows("image")[rows]}


both = image_bytes("train", "pool_image") & image_bytes("test")
print(f"test images that are trained on, byte by byte: {len(both)} of {len(test)}")
print(f"largest group of the set: {dataset.items['group'].value_counts().iloc[0]} items")

# %% guess
guess = 10

# %% guess-check
assert 0 <= guess <= 100, f"points lie between 0 and 100, got {guess}"
print(f"noted: {guess} points")

# %% leak-tools
def again(pixels, generator):
    """The same subjects (B, 3, H, W) uint8, taken again: moved, exposed differently, noisy."""
    side = pixels.shape[-1]
    wide = F.pad(pixels.float(), (2, 2, 2, 2), mode="replicate")
    down, right = torch.randint(0, 5, (2, len(pixels)), generator=generator).tolist()
    out = [image[:, y : y + side, x : x + side] for image, y, x in zip(wide, down, right)]
    exposure = 0.8 + 0.4 * torch.rand(len(out), 1, 1, 1, generator=generator)
    noise = 8 * torch.randn(pixels.shape, generator=generator)
    return (torch.stack(out) * exposure + noise).clamp(0, 255).byte()


def classifier():
    image = {"image": CNN(width=16, dim=32, summary_dim=64)}
    return Multimodal(image, Concat(image, dim=64), nn.Linear(64, len(dataset.classes(label))))


def learn(model, objective, shown, count):
    """`epochs` passes over `count` items in batches of 64."""
    train(model, objective, shown, steps=epochs * max(1, count // 64), lr=3e-3)
    return model.eval()

# %% leak
def test_accuracy(count, split, seed):
    """Test accuracy with `count` images a patient, split `by patient` or `by image`."""
    who = choose(torch.from_numpy(train_rows), images // count, stream(seed, "patients"))
    patient = torch.arange(len(who)).repeat_interleave(count)
    pixels = again(dataset.pixels(who[patient].numpy()), stream(seed, "visits"))
    target = dataset.labels(who.numpy(), label)[patient]
    unit = patient if split == "by patient" else torch.arange(len(patient))
    drawn = torch.randperm(int(unit.max()) + 1, generator=stream(seed, "split"))
    held = torch.isin(unit, drawn[: len(drawn) // 3])
    learnt = (~held).nonzero()[:, 0]
    order = batches(learnt, 64, stream(seed, "order"))
    shown = (Batch(part, {"image": pixels[part]}, target[part]) for part in order)
    model = learn(seeded(seed, "model", classifier), cross_entropy, shown, len(learnt))
    with torch.no_grad():
        answer = model({"image": pixels[held]}).argmax(1)
    return (answer == target[held]).float().mean().item()

# %% leak-results
leak = {}
for count in visits:
    for split in ("by image", "by patient"):
        scores = np.array([100 * test_accuracy(count, split, seed) for seed in seeds])
        leak[count, split], each = scores, ", ".join(f"{score:.0f}" for score in scores)
        print(f"{count} images a patient, split {split}: {scores.mean():.0f} % right ({each})")

# %% batch-trap
flip = v2.RandomHorizontalFlip(p=0.5)
batch = dataset.pixels(train_rows[:32])
torch.manual_seed(0)
whole = [int(sum(not torch.equal(a, b) for a, b in zip(flip(batch), batch))) for _ in range(6)]
each = [int(sum(not torch.equal(flip(one), one) for one in batch)) for _ in range(6)]
print("images flipped of 32, the transform called on the batch:", whole)
print("images flipped of 32, the transform called on each image:", each)

# %% words
def mirror(text):
    """The caption of the mirrored image: left and right exchanged."""
    other = {"left": "right", "right": "left"}
    return re.sub(r"\b(left|right)\b", lambda match: other[match[0]], text)


task = Retrieval(dataset)
words = vocabulary(dataset)
loader = task.loader(words)
left, right = words(["left right"])[0].tolist()


def mirror_ids(ids):
    """`mirror` for captions that are numbers."""
    return torch.where(ids == left, right, torch.where(ids == right, left, ids))


tested = loader(task.rows("test")[:400]).inputs
sided = (mirror_ids(tested["text"]) != tested["text"]).any(1)
caption = dataset.texts_of(train_rows[:1])[0][0]
print(f"'{caption}' becomes '{mirror(caption)}'; {int(sided.sum())} of {len(sided)} change")

# %% flip
def flipped(share, texts_too):
    """A transform for a loader: a `share` of the images flipped, with or without their captions."""

    def transform(batch, generator):
        coin = torch.rand(len(batch.rows), generator=generator) < share
        pixels, ids = batch.inputs["image"], batch.inputs["text"]
        pixels = torch.where(coin[:, None, None, None], pixels.flip(-1), pixels)
        ids = torch.where(coin[:, None] & texts_too, mirror_ids(ids), ids)
        return batch.with_input("image", pixels).with_input("text", ids)

    return transform


arms = {"no flip": flipped(0.0, False), "image alone": flipped(0.5, False)}
arms["image and text"] = flipped(0.5, True)

# %% flip-scores
def dual():
    encoders = {"image": CNN(width=16, dim=32, summary_dim=64)}
    encoders["text"] = TextTransformer(len(words), dim=48)
    return DualEncoder(encoders, dim=64, hidden=128)


def flip_scores(arm, seed):
    """R@1 and the side score in percent, equation (1), of one arm."""
    seen = replace(loader, transforms=(arms[arm],))
    rows = choose(torch.from_numpy(train_rows), pairs, stream(seed, "pairs"))
    shown = Batches(seen, batches(rows, 64, stream(seed, "order")), stream(seed, "drawn"))
    model = learn(seeded(seed, "dual", dual), task.objective, shown, pairs)
    with torch.no_grad():
        image, text = model(tested).values()
        mirrored = model.embed("text", mirror_ids(tested["text"]))
    place = torch.arange(len(image))
    first = retrieval_ranks(image, text, place, place) == 1
    own_side = ((image * text).sum(1) > (image * mirrored).sum(1))[sided]
    return [100 * first.float().mean().item(), 100 * own_side.float().mean().item()]

# %% flip-results
flips = {}
for arm in arms:
    flips[arm] = np.array([flip_scores(arm, seed) for seed in seeds])
    recall, side = flips[arm].mean(0)
    each = ", ".join(f"{score:.0f}" for score in flips[arm][:, 1])
    print(f"{arm}: R@1 {recall:.0f} %, side {side:.0f} % ({each})")

# %% figure-tools
def draw_split(axis):
    for by, colour, marker in (("by image", plots.VERMILION, "s"), ("by patient", plots.BLUE, "o")):
        values = np.array([leak[count, by] for count in visits])
        axis.plot(visits, values.mean(1), color=colour, marker=marker, label=f"split {by}")
        axis.plot(visits, values, ".", color=colour, markersize=4)
    chance = 100 / len(dataset.classes(label))
    axis.axhline(chance, color=plots.GREY, linestyle="--", linewidth=1, label="chance")
    axis.set(title="A split", xlabel="images of one patient", ylabel="test accuracy (%)")
    axis.set(xticks=visits, ylim=(0, 100))
    axis.legend(fontsize=8.5, loc="upper left")


def draw_flip(axis):
    for arm, colour in zip(flips, (plots.GREY, plots.VERMILION, plots.BLUE)):
        axis.bar(arm, flips[arm][:, 1].mean(), color=colour, width=0.6)
        axis.plot([arm] * len(seeds), flips[arm][:, 1], ".", color="black", markersize=5)
    axis.axhline(50, color=plots.GREY, linestyle="--", linewidth=1)
    axis.set(title="A flip", ylabel="caption told from its mirror image (%)", ylim=(0, 100))

# %% split-and-flip-figure
tops = [leak[visits[-1], by].mean() for by in ("by image", "by patient")]
split_words = f"{visits[-1]} images a patient: {tops[0]:.1f} % by image, {tops[1]:.1f} % by patient"
flip_words = "; ".join(f"{arm}: {values[:, 1].mean():.0f} %" for arm, values in flips.items())
with plots.figure(
    1,
    2,
    width=9.5,
    height=3.9,
    alt=f"Left: test accuracy against images of one patient, for both splits. {split_words}. "
    f"Right: share of sided captions told from their mirror image, by flip. {flip_words}.",
    caption=f"A split: {split_words}, with equal numbers of images. A flip: share of captions "
    f"told from their mirror image. {flip_words}. Small points: one seed each.",
) as (left_axis, right_axis):
    draw_split(left_axis)
    draw_flip(right_axis)

# %% turned
def turned(caption):
    """The caption of the image turned clockwise by a quarter."""
    sides = {"up": "right", "right": "down", "down": "left", "left": "up"}
    places = {"left of": "above", "above": "right of", "right of": "below", "below": "left of"}
    pattern = "|".join([*places, *sides])  # the longer ones first
    return re.sub(rf"\b({pattern})\b", lambda match: (places | sides)[match[0]], caption)

# %% turned-check
given = "a red arrow pointing up , left of a small blue circle on plain ground ."
wanted = "a red arrow pointing right , above a small blue circle on plain ground ."
assert turned(given) == wanted, turned(given)
assert turned("left , below") == "up , left of", "a word that was put in is turned again"
sides, places = ("up", "right", "down", "left"), ("left of", "right of", "above", "below")
every = [f"an arrow pointing {side} , {place} a cross" for side in sides for place in places]
assert {turned(text) for text in every} == {*every}, "different images, different captions"
for text in every:
    assert turned(turned(turned(turned(text)))) == text != turned(text), "four quarters"
    assert mirror(turned(mirror(turned(text)))) == text, "a turned mirror image is turned back"
assert turned("a bright cupboard") == "a bright cupboard", "whole words only"
print(turned(given))

# %% leaks
def leaks(items):
    """Sorted names of the groups in what is learnt from and in what is scored, or in two scored
    splits; items has columns split and group."""
    side = items["split"].replace({"pool_image": "train", "pool_text": "train"})
    sides = side.groupby(items["group"]).nunique()
    return sorted(sides.index[sides > 1])

# %% leaks-check
def found(splits, groups):
    return leaks(dataset.items.iloc[: len(groups)].assign(split=splits.split(), group=list(groups)))


assert found("train test train test", "aabc") == ["a"], "group a is trained on and tested on"
assert found("train train test", "aab") == [], "two items of one split may share a group"
assert found("train pool_image pool_text val", "aaab") == [], "what is learnt from may share groups"
assert found("pool_text test", "aa") == ["a"], "a text of the pool is learnt from"
two = found("val test train ood_style", "bbaa")
assert two == ["a", "b"], "two scored splits leak as well, and names are sorted"
print(f"groups that leak, of {data}: {leaks(dataset.items)}; as refused above: {leaks(moved)}")

# %% flip-pairs
def flip_pairs(pixels, texts, generator):
    """Each pair mirrored, image and text, with probability 1/2.

    pixels (B, 3, H, W), texts a list of B; returns both anew."""
    coin = torch.rand(len(pixels), generator=generator) < 0.5
    pixels = torch.where(coin[:, None, None, None], pixels.flip(-1), pixels)
    return pixels, [mirror(text) if heads else text for text, heads in zip(texts, coin)]

# %% flip-pairs-check
ramp = torch.arange(64 * 3 * 2 * 4, dtype=torch.float32).reshape(64, 3, 2, 4)
kept, given = ramp.clone(), [f"left of {place}" for place in range(64)]
seen, read = flip_pairs(ramp, given, stream(0, "coins"))
over, as_before = ((seen == image).flatten(1).all(1) for image in (kept.flip(-1), kept))
assert (over | as_before).all(), "an image is kept, or flipped left to right"
told = [text.startswith("right") for text in read]
assert told == over.tolist(), "a text is mirrored where its image is, and only there"
assert 16 < over.sum() < 48, f"{int(over.sum())} of 64 flipped: a coin for each item"
assert torch.equal(ramp, kept) and given[0] == "left of 0", "what is given stays as it was"
same, other = (flip_pairs(ramp, given, stream(number, "coins"))[0] for number in (0, 1))
assert torch.equal(seen, same) and not torch.equal(seen, other), "coins come from the generator"
print(f"{int(over.sum())} of {len(over)} pairs flipped")

# %% findings
first, last = visits[0], visits[-1]
no_gap, inflation = (leak[n, "by image"] - leak[n, "by patient"] for n in (first, last))
few, many = (leak[n, "by patient"].mean() for n in (last, first))
recalls = "; ".join(f"{arm} {values[:, 0].mean():.0f} %" for arm, values in flips.items())
display(
    Markdown(f"""
* {split_words}. These **{inflation.mean():.1f} points** are not there for the next patient;
  your guess was {guess:g}. With {first} image(s) a patient the difference is {no_gap.mean():.0f}.
* Split by patient, {many:.0f} % are right with {images // first} patients of {first}, and
  {few:.0f} % with {images // last} patients of {last}.
* Captions told from their mirror image: {flip_words}. R@1: {recalls}.
* {len(seeds)} seeds, {pairs} pairs: an illustration of the direction, without intervals.""")
)
