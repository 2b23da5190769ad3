# What can a split or a flip do to a score?
# The code of 03_data_and_augmentation.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import re

import numpy as np
import torch
from IPython.display import Markdown, display
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2

import mmkit
from mmkit.core import contrastive_loss, retrieval_ranks
from mmkit.data.recipe import find_recipe, recipe_names
from mmkit.data.writer import validate
from mmkit.models import CNN, DualEncoder, TextTransformer, WordTokenizer
from mmkit.teach import plots
from mmkit.training import batches, choose, seeded, stream

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
print("images", dataset.images.shape, dataset.images.dtype, "| items", dataset.items.shape, "| texts", dataset.texts.shape)
print("labels:", ", ".join(dataset.label_columns), "| content", dataset.content[:12])
print(", ".join(f"{split} {count:,}" for split, count in dataset.splits.items()))
for name in recipe_names():
    recipe = find_recipe(name)
    print(f"{name}: {recipe.licence} | {recipe.terms.split(';')[0].split('.')[0]}")

# %% refusal
train, test = dataset.rows("train"), dataset.rows("test")
moved = dataset.items.copy()
moved.loc[train[0], ["split", "group"]] = ["test", moved.loc[train[1], "group"]]
try:
    validate(moved, dataset.texts, images=len(dataset.images))
except mmkit.MmkitError as error:
    print(error)
learnt = [dataset.rows(split) for split in ("train", "pool_image") if split in dataset.splits]
hashes = [{dataset.images[place].tobytes() for place in dataset.items["image"].to_numpy()[part]} for part in (np.concatenate(learnt), test)]
print(f"test images that are trained on, byte by byte: {len(hashes[0] & hashes[1])} of {len(test)}; largest group of the set: {dataset.items['group'].value_counts().iloc[0]}")

# %% guess
guess = 10

# %% guess-check
assert 0 <= guess <= 100, f"points lie between 0 and 100, got {guess}"
print(f"noted: {guess} points")

# %% leak-tools
def again(pixels, generator):
    """The same subjects, taken again: moved by up to 2 pixels, exposed differently, with noise. (B, 3, H, W) uint8."""
    side = pixels.shape[-1]
    wide, (down, right) = F.pad(pixels.float(), (2, 2, 2, 2), mode="replicate"), torch.randint(0, 5, (2, len(pixels)), generator=generator).tolist()
    out = torch.stack([image[:, y : y + side, x : x + side] for image, y, x in zip(wide, down, right)])
    exposure = 0.8 + 0.4 * torch.rand(len(out), 1, 1, 1, generator=generator)
    return (out * exposure + 8 * torch.randn(out.shape, generator=generator)).clamp(0, 255).byte()


def small_cnn():
    return CNN(width=16, dim=32, summary_dim=64)


def trained(model, loss_of, rows, seed):
    """AdamW for `epochs` passes over the rows, in batches of 64."""
    optimizer, steps = torch.optim.AdamW(model.parameters(), lr=3e-3), epochs * max(1, len(rows) // 64)
    for _, part in zip(range(steps), batches(rows, 64, stream(seed, "order"))):
        optimizer.zero_grad()
        loss_of(part).backward()
        optimizer.step()
    return model.eval()

# %% leak
def test_accuracy(count, by_patient, seed):
    """Test accuracy with `count` images a patient, split by patient or by image."""
    who = choose(torch.from_numpy(train), images // count, stream(seed, "patients"))
    patient = torch.arange(len(who)).repeat_interleave(count)
    pixels, target = again(dataset.pixels(who[patient].numpy()), stream(seed, "visits")), dataset.labels(who.numpy(), label)[patient]
    order = torch.randperm(len(who) if by_patient else len(patient), generator=stream(seed, "split"))
    held = order[: len(order) // 3]
    held = torch.isin(patient if by_patient else torch.arange(len(patient)), held)
    body, head = seeded(seed, "body", small_cnn), seeded(seed, "head", nn.Linear, 64, len(dataset.classes(label)))

    def logits(part):
        return head(body(pixels[part]).summary)

    trained(nn.ModuleList([body, head]), lambda part: F.cross_entropy(logits(part), target[part]), (~held).nonzero()[:, 0], seed)
    with torch.no_grad():
        return (logits(held).argmax(1) == target[held]).float().mean().item()


leak = {(count, by): [test_accuracy(count, by == "by patient", seed) for seed in seeds] for count in visits for by in ("by image", "by patient")}
for (count, by), values in leak.items():
    print(f"{count} images a patient, split {by}: accuracy {np.mean(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})")
inflation = 100 * (np.mean(leak[visits[-1], "by image"]) - np.mean(leak[visits[-1], "by patient"]))

# %% batch-trap
flip = v2.RandomHorizontalFlip(p=0.5)
batch = dataset.pixels(train[:32])
torch.manual_seed(0)
whole = [int(sum(not torch.equal(a, b) for a, b in zip(flip(batch), batch))) for _ in range(6)]
each = [int(sum(not torch.equal(flip(one), one) for one in batch)) for _ in range(6)]
print("images flipped of 32, the transform called on the batch:", whole)
print("images flipped of 32, the transform called on each image:", each)

# %% words
def mirror(text):
    """The caption of the mirrored image: left and right exchanged."""
    return re.sub(r"\b(left|right)\b", lambda match: "right" if match[0] == "left" else "left", text)


def first_captions(rows):
    texts, owner = dataset.texts_of(rows)
    return [texts[place] for place in np.searchsorted(owner, np.arange(len(rows)))]


captions = {"train": first_captions(train), "test": first_captions(test[:400])}
words = WordTokenizer(captions["train"] + [mirror(text) for text in captions["train"]])
ids = {split: (words(kept), words([mirror(text) for text in kept])) for split, kept in captions.items()}
sided = torch.tensor([mirror(text) != text for text in captions["test"]])
print(f"'{captions['train'][0]}' becomes '{mirror(captions['train'][0])}'; {int(sided.sum())} of {len(sided)} test captions change")

# %% flip
def flip_scores(arm, seed):
    """R@1 and the side score, equation (1), of one arm."""
    pixels, coins = dataset.pixels(train), stream(seed, "flips")
    model = seeded(seed, "dual", lambda: DualEncoder(small_cnn(), TextTransformer(len(words), dim=48), dim=64, hidden=128))

    def loss(part):
        coin = torch.rand(len(part), generator=coins) < (0.5 if arm != "no flip" else 0.0)
        seen = torch.where(coin[:, None, None, None], pixels[part].flip(-1), pixels[part])
        read = torch.where(coin[:, None] & (arm == "image and text"), ids["train"][1][part], ids["train"][0][part])
        return contrastive_loss(*model(seen, read), model.logit_scale)

    trained(model, loss, choose(torch.arange(len(train)), pairs, stream(seed, "pairs")), seed)
    with torch.no_grad():
        image = model.embed_image(dataset.pixels(test[:400]))
        own, mirrored = (model.embed_text(part) for part in ids["test"])
    place = torch.arange(len(image))
    side = ((image * own).sum(1) > (image * mirrored).sum(1))[sided].float().mean().item()
    return (retrieval_ranks(image, own, place, place) == 1).float().mean().item(), side


arms = ("no flip", "image alone", "image and text")
flips = {arm: np.array([flip_scores(arm, seed) for seed in seeds]) for arm in arms}
for arm, values in flips.items():
    print(f"{arm}: R@1 {values[:, 0].mean():.2f}, side {values[:, 1].mean():.2f} ({', '.join(f'{value:.2f}' for value in values[:, 1])})")

# %% split-and-flip-figure
tops = [100 * np.mean(leak[visits[-1], by]) for by in ("by image", "by patient")]
split_words = f"With {visits[-1]} images a patient the split by image scores {tops[0]:.1f} %, by patient {tops[1]:.1f} %"
flip_words = "; ".join(f"{arm}: {100 * values[:, 1].mean():.0f} %" for arm, values in flips.items())
with plots.figure(
    1, 2, width=9.5, height=3.9, alt=f"Left: test accuracy against images of one patient, for both splits. {split_words}. Right: share of sided captions told from their mirror image, by flip. {flip_words}.",
    caption=f"A split: {split_words}, with equal numbers of images. A flip: share of captions told from their mirror image. {flip_words}. Small points: one seed each.",
) as (left, right):
    for by, colour, marker in (("by image", plots.VERMILION, "s"), ("by patient", plots.BLUE, "o")):
        values = 100 * np.array([leak[count, by] for count in visits])
        left.plot(visits, values.mean(1), color=colour, marker=marker, label=f"split {by}")
        left.plot(visits, values, ".", color=colour, markersize=4)
    left.axhline(100 / len(dataset.classes(label)), color=plots.GREY, linestyle="--", linewidth=1, label="chance")
    left.set(title="A split", xlabel="images of one patient", ylabel="test accuracy (%)", xticks=visits, ylim=(0, 100))
    left.legend(fontsize=8.5, loc="upper left")
    for place, (arm, colour) in enumerate(zip(arms, (plots.GREY, plots.VERMILION, plots.BLUE))):
        right.bar(place, 100 * flips[arm][:, 1].mean(), color=colour, width=0.6)
        right.plot([place] * len(seeds), 100 * flips[arm][:, 1], ".", color="black", markersize=5)
    right.axhline(50, color=plots.GREY, linestyle="--", linewidth=1)
    right.set(title="A flip", xticks=range(3), xticklabels=["no flip", "image\nalone", "image\nand text"], ylabel="caption told from its mirror image (%)", ylim=(0, 100))

# %% turned
def turned(caption):
    """The caption of the image turned clockwise by a quarter."""
    to = {"left of": "above", "above": "right of", "right of": "below", "below": "left of", "up": "right", "right": "down", "down": "left", "left": "up"}
    return re.sub(r"\b(left of|right of|above|below|up|right|down|left)\b", lambda match: to[match[0]], caption)

# %% turned-check
example = "a red arrow pointing up , left of a small blue circle on plain ground ."
assert turned(example) == "a red arrow pointing right , above a small blue circle on plain ground .", turned(example)
assert turned("an arrow pointing left , below a cross") == "an arrow pointing up , left of a cross", "a word that was put in is not turned again"
every = [f"an arrow pointing {side} , {place} a cross" for side in ("up", "right", "down", "left") for place in ("left of", "right of", "above", "below")]
assert len({turned(text) for text in every}) == 16 and not any(turned(text) == text for text in every), "different images have different captions"
assert all(turned(turned(turned(turned(text)))) == text for text in every), "four quarters are a whole turn"
assert all(mirror(turned(mirror(turned(text)))) == text for text in every), "turning a mirror image clockwise turns the image back"
assert turned("pointing down , above") == "pointing left , right of" and turned("a bright cupboard") == "a bright cupboard", "whole words only"
print(turned(example))

# %% leaks
def leaks(items):
    """Sorted names of the groups in what is learnt from and in what is scored, or in two scored splits; items has columns split and group."""
    side = items["split"].replace({"pool_image": "train", "pool_text": "train"})
    sides = side.groupby(items["group"]).nunique()
    return sorted(sides.index[sides > 1])

# %% leaks-check
def table(*rows):
    return dataset.items.iloc[: len(rows)].assign(split=[split for split, _ in rows], group=[group for _, group in rows])


assert leaks(table(("train", "a"), ("test", "a"), ("train", "b"), ("test", "c"))) == ["a"], "group a is trained on and tested on"
assert leaks(table(("train", "a"), ("train", "a"), ("test", "b"))) == [], "two items of one split may share a group"
assert leaks(table(("train", "a"), ("pool_image", "a"), ("pool_text", "a"), ("val", "b"))) == [], "what is learnt from may share groups"
assert leaks(table(("pool_text", "a"), ("test", "a"))) == ["a"], "a text of the pool is learnt from"
assert leaks(table(("val", "b"), ("test", "b"), ("train", "a"), ("ood_style", "a"))) == ["a", "b"], "two scored splits leak as well, and names are sorted"
print(f"groups of {data} that leak: {leaks(dataset.items)}; of the table that was refused: {leaks(moved)}")

# %% flip-pairs
def flip_pairs(pixels, texts, generator):
    """Each pair mirrored, image and text, with probability 1/2. pixels (B, 3, H, W), texts a list of B; returns both anew."""
    coin = torch.rand(len(pixels), generator=generator) < 0.5
    return torch.where(coin[:, None, None, None], pixels.flip(-1), pixels), [mirror(text) if flipped else text for text, flipped in zip(texts, coin.tolist())]

# %% flip-pairs-check
ramp = torch.arange(64 * 3 * 2 * 4, dtype=torch.float32).reshape(64, 3, 2, 4)
kept, given = ramp.clone(), [f"left of {place}" for place in range(64)]
seen, read = flip_pairs(ramp, given, stream(0, "coins"))
flipped = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(seen, kept)])
assert all(torch.equal(a, b) or turned_over for a, b, turned_over in zip(seen, kept, flipped)), "an image is kept, or flipped left to right"
assert [text.startswith("right") for text in read] == flipped.tolist(), "a text is mirrored where its image is, and only there"
assert 16 < flipped.sum() < 48, f"{int(flipped.sum())} of 64 flipped: a coin for each item"
assert torch.equal(ramp, kept) and given[0] == "left of 0", "what is given stays as it was"
again_seen, _ = flip_pairs(ramp, given, stream(0, "coins"))
assert torch.equal(seen, again_seen) and not torch.equal(seen, flip_pairs(ramp, given, stream(1, "coins"))[0]), "the coins come from the generator"
print(f"{int(flipped.sum())} of {len(flipped)} pairs flipped")

# %% findings
display(Markdown(
    f"* {split_words}: **{inflation:.1f} points** that are not there for the next patient. Your guess was {guess:g}. "
    f"With {visits[0]} image{'s' * (visits[0] > 1)} a patient the difference is {100 * (np.mean(leak[visits[0], 'by image']) - np.mean(leak[visits[0], 'by patient'])):.0f}.\n"
    f"* Split by patient, the accuracy is {np.mean(leak[visits[0], 'by patient']):.2f} with {images // visits[0]} patients of {visits[0]} and {np.mean(leak[visits[-1], 'by patient']):.2f} with {images // visits[-1]} patients of {visits[-1]}.\n"
    f"* Captions told from their mirror image: {flip_words}. R@1: {'; '.join(f'{arm} {values[:, 0].mean():.2f}' for arm, values in flips.items())}.\n"
    f"* {len(seeds)} seeds, {pairs} pairs: an illustration of the direction, without intervals."
))
