# What happens when the sources' own formulas and listings are run?
# The code of 18_the_sources_made_right.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from IPython.display import Markdown, display
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_pil_image, to_tensor
from transformers import BatchEncoding, BertConfig, BertForSequenceClassification, BertForTokenClassification, BertModel

import mmkit
from mmkit.models import CNN, Average, TextTransformer, WordTokenizer
from mmkit.teach import plots
from mmkit.training import batches, seeded, stream

# %% parameters
pairs: int = 1024  # training pairs
steps: int = 64  # steps of each small training
few: int = 192  # pairs of the training that overfits
noise: float = 0.5  # share of those pairs whose label is drawn anew
epochs: int = 16  # passes over them
seed: int = 0  # data order, first weights and noise, each from its own stream

# %% data
dataset = mmkit.load("scenes", both=0.0, train=pairs, val=300, test=500, ood=0, pool=8)
task, slips = mmkit.tasks.Answering(dataset), []
rows = {split: dataset.rows(split) for split in ("train", "val", "test")}
x = {split: dataset.pixels(part) for split, part in rows.items()}
question, caption = ({split: dataset.texts_of(part, role=role)[0] for split, part in rows.items()} for role in ("question", "caption"))
words = WordTokenizer(question["train"] + caption["train"])
asked, told = ({split: words(texts[::each]) for split, texts in kind.items()} for kind, each in ((question, 1), (caption, 2)))
answer, heading, kind = ({split: dataset.labels(part, f"label_{name}") for split, part in rows.items()} for name in ("answer", "heading", "kind"))


def slip(where, what, measure, right, wrong=None, stops=None):
    """Write down one slip: what it did, and the same number made right."""
    slips.append({"where": where, "what": what, "measure": measure, "wrong": wrong, "right": right, "stops": stops})
    print(f"{where} {what}: as printed {stops or f'{wrong:.2f}'}, made right {right:.2f} ({measure})")

# %% tools
def caught(call, hide=""):
    """Run what must stop; the type of its error, after printing the message."""
    try:
        call()
    except Exception as error:  # whatever it is, it is the finding
        print(f"{type(error).__name__}: {str(error).replace(hide, '') if hide else error}".splitlines()[0][:150])
        return type(error).__name__
    raise AssertionError("it was expected to stop, and ran")


def fit(model, loss_of, count, *, size=64, lr=3e-3, steps=steps, held="", optimizer=torch.optim.AdamW, after=lambda step: None):
    """Gradient steps on `loss_of(batch of positions)`; held: how the names of the parameters begin that the optimiser holds."""
    optimizer = optimizer([p for name, p in model.named_parameters() if name.startswith(held)], lr=lr)
    for step, part in zip(range(steps), batches(torch.arange(count), size, stream(seed, "order"))):
        optimizer.zero_grad()
        loss_of(model.train(), part).backward()
        optimizer.step()
        after(step)
    return model.eval()

# %% guess
guess = 0.5

# %% guess-check
assert 0 <= guess <= 1, f"a share lies between 0 and 1, got {guess}"
print(f"noted: {guess:.0%}")

# %% signs
def likelihood(z, y):
    return y * F.logsigmoid(z) + (1 - y) * F.logsigmoid(-z)  # the bracket of (2), from logits z


hits, losses = {}, {
    "minus sign twice": lambda z, y: -(-likelihood(z, y)).mean(),
    "no minus sign": lambda z, y: likelihood(z, y).mean(),
    "label used as a factor": lambda z, y: -(y * F.logsigmoid(z)).mean(),
    "right": lambda z, y: -likelihood(z, y).mean(),
}
bag = {split: F.one_hot(ids, len(words)).sum(1).clamp(max=1).float() for split, ids in asked.items()}
bag = {split: values - bag["train"].mean(0) for split, values in bag.items()}
named = {split: (part == dataset.classes("label_kind").index("text")).float() for split, part in kind.items()}
for name, loss in losses.items():
    linear = fit(seeded(seed, "linear", nn.Linear, len(words), 1), lambda m, part, loss=loss: loss(m(bag["train"][part])[:, 0], named["train"][part]), pairs, size=pairs, lr=1.0, optimizer=torch.optim.SGD)
    hits[name] = ((linear(bag["test"])[:, 0] > 0) == named["test"].bool()).float().mean().item()
for where, name in zip(("D §4.1", "D §4.2", "C §4.2"), losses):
    slip(where, name, "accuracy", hits["right"], hits[name])
z, y = torch.tensor([4.0, -4.0]), torch.tensor([1.0, 0.0])
wrong = [name for name, loss in losses.items() if not loss(z, y) < loss(-z, y) or not torch.isclose(loss(-z, y), F.binary_cross_entropy_with_logits(-z, y))]
assert wrong == list(losses)[:3], "the test: a right answer costs less than a wrong one, and a wrong one as much as the library says"

# %% reconstruction
table = torch.randn(12, 8, generator=stream(seed, "table"))  # E: 12 words, 8 numbers each
printed_loss = {scale: F.cross_entropy(scale * table @ table.T, torch.arange(12)).item() for scale in (1.0, 2.0, 4.0)}  # (4) of the guesses scale * e
right_loss = {scale: ((scale - 1) * table).square().mean().item() for scale in printed_loss}  # (5)
r2 = {scale: 1 - right_loss[scale] / (table - table.mean(0)).square().mean().item() for scale in printed_loss}
print("scale, loss (4), loss (5), R²:", *(f"{scale:g}: {printed_loss[scale]:.4f}, {right_loss[scale]:.2f}, {r2[scale]:.2f};" for scale in r2))
slip("C §4.1", "reconstruction loss = MLM loss", "R² of the embedding", *(r2[min(loss, key=loss.get)] for loss in (right_loss, printed_loss)))
assert right_loss[1.0] == 0 < printed_loss[1.0], "the test: no gap costs nothing"

# %% separates
image, text = seeded(seed, "image", CNN), seeded(seed, "text", TextTransformer, len(words))
joint, *apart = (task.build(parts, seed=seed) for parts in ({"image": image, "text": text}, {"image": image}, {"text": text}))
some, w, y = x["train"][:64], asked["train"][:64], answer["train"][:64]
objectives = {name: lambda w, models=models: sum(F.cross_entropy(model({"image": some, "text": w}), y) for model in models) for name, models in (("(6)", apart), ("(7)", [joint]))}
gradient, moved = lambda loss: torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*image.parameters()])]), {}
for name, objective in objectives.items():
    own, other = gradient(objective(w)), gradient(objective(w.roll(1, 0)))  # other: each image beside another's text
    moved[name] = ((own - other).norm() / own.norm()).item()
slip("A §4.2", "joint objective separates", "text's effect on the image gradient", moved["(7)"], moved["(6)"])
assert moved["(6)"] < 1e-5 < 0.01 < moved["(7)"], "the test of coupling: exchange the texts, and the image encoder's gradient moves"

# %% captioning-as-printed
small = dict(vocab_size=len(words), hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128)
tagger = BertForTokenClassification(BertConfig(**small)).eval()
caught(lambda: exec("model_v.fc = torch.nn.Linear(2048, 256)", {}))
with TemporaryDirectory() as folder:
    caught(lambda: ImageFolder(folder), hide=folder)
    for name in "ab":
        Path(folder, name).mkdir()
        to_pil_image(x["train"][0]).save(Path(folder, name, "0.png"))
    target = torch.tensor(ImageFolder(folder).targets)
print(f"targets {target.tolist()}; against 256 outputs the loss starts at {F.cross_entropy(torch.zeros(2, 256), target):.2f} = ln 256")
photo_error = caught(lambda: tagger(torch.rand(4, 3, 224, 224)))
print("given texts, it returns", tuple(tagger(told["train"][:4]).logits.shape), "= (texts, words, 2 tags): no vocabulary to write with")
slip("A §5.2", "folder numbers as captions", "outputs that can be right", told["train"].unique().count_nonzero().item() / len(words), len(target.unique()) / 256)

# %% caption-decoder
class Captioner(nn.Module):
    """Logits of each word given the photo and the words before it; `write` goes on from its own words. Word 2 starts a text."""

    def __init__(self, width=96):
        super().__init__()
        self.image, self.start = CNN(), nn.Linear(128, width)
        self.words, self.body, self.out = nn.Embedding(len(words), width), nn.GRU(width, width, batch_first=True), nn.Linear(width, len(words))

    def forward(self, photos, ids):
        before = F.pad(ids[:, :-1], (1, 0), value=2)
        return self.out(self.body(self.words(before), self.start(self.image(photos).summary)[None])[0])

    @torch.inference_mode()
    def write(self, photos, length):
        ids = torch.zeros(len(photos), length, dtype=torch.int64)
        for place in range(length):
            ids[:, place] = self(photos, ids[:, : place + 1])[:, -1].argmax(1)
        return ids

# %% captioning-right
def next_word(m, part):
    return F.cross_entropy(m(x["train"][part], told["train"][part]).flatten(0, 1), told["train"][part].flatten(), ignore_index=0)


captioner, real = fit(seeded(seed, "captioner", Captioner), next_word, pairs), told["test"][:100]
written, vary = captioner.write(x["test"][:100], real.shape[1]), (real != real[0]).any(0)  # vary: places that differ between captions
right, shuffled = ((text == real)[:, vary].float().mean().item() for text in (written, written.roll(1, 0)))
print("written:", *words.words(written[0]), "\nreal:   ", *words.words(real[0]), f"\nwith another photo's caption {shuffled:.2f} of the content words are right")
slip("A §5.2", "photos given to a token classifier", "content words right", right, stops=photo_error)
later = torch.cat([real[:2, :5], torch.full_like(real[:2, 5:], 3)], 1)
assert torch.allclose(*(captioner(x["test"][:2], ids)[:, :6] for ids in (real[:2], later))), "the test: a word's logits do not change with the words that come after"

# %% fusion
def listing():
    """The two models of E; the kit's ensemble joins them by the mean of their log-probabilities."""
    return Average([task.build({name: seeded(seed, name, *kind)}, seed=seed) for name, kind in (("text", (TextTransformer, len(words))), ("image", (CNN,)))])


inputs = lambda split, part=slice(None): {"image": x[split][part], "text": asked[split][part]}


def accuracy(model, split):
    with torch.no_grad():
        return (model(inputs(split)).argmax(1) == answer[split]).float().mean().item()


stops = [caught(lambda: to_tensor(question["train"][0])), caught(lambda: tagger(told["train"][:4]) + torch.rand(4, 1000))]

# %% fusion-right
scores, before = {}, listing().state_dict()
for name, held in (("text model", "members.0"), ("text and image model", "members")):
    both = fit(listing(), lambda m, part: F.cross_entropy(m(inputs("train", part)), answer["train"][part]), pairs, held=held)
    still = [key for key, value in both.state_dict().items() if torch.equal(value, before[key])]
    scores[name] = accuracy(both, "test")
    print(f"the optimiser holds the {name}: {len(still)} of {len(before)} tensors never moved")
assert not still, f"the test of reach: after training every tensor has moved; these have not: {still}"
for what, error in zip(("image transform on a text", "loss = sum of two models' outputs"), stops):
    slip("E §5.2", what, "accuracy", scores["text and image model"], stops=error)
slip("E §5.2", "image model not in the optimiser", "accuracy", scores["text and image model"], scores["text model"])

# %% text-as-printed
ids, label = told["train"], heading["train"]
loader = DataLoader((BatchEncoding({"input_ids": ids, "attention_mask": ids > 0}), label), batch_size=32, sampler=(1, 0))  # an order that shuffle=True may draw
print(f"C's loader: {len(loader.dataset)} items for {len(ids)} texts")
tuple_error = caught(lambda: next(iter(loader)))
hidden = seeded(seed, "bert", BertModel, BertConfig(**small)).eval()(ids[:32])[0]
caught(lambda: F.cross_entropy(hidden, label[:32]))
head_error = caught(lambda: (hidden.argmax(dim=1) == label[:32]).float().mean())
print(f"with one text a batch it runs, and the accuracy it prints is {(hidden[:1].argmax(dim=1) == label[:1]).float().mean():.2f}")
third_error = caught(lambda: BertForSequenceClassification(BertConfig(**small))(ids[:4]).logits.argmax(dim=2))

# %% text-right
paired, classes = TensorDataset(ids, label), lambda m, ids: m(ids, attention_mask=(ids > 0).long()).logits
classifier = seeded(seed, "classifier", BertForSequenceClassification, BertConfig(**small, num_labels=4))
fit(classifier, lambda m, part: F.cross_entropy(classes(m, paired[part][0]), paired[part][1]), pairs, size=32)
with torch.no_grad():
    hit = (classes(classifier, told["test"]).argmax(1) == heading["test"]).float().mean().item()
    padded = torch.allclose(classes(classifier, F.pad(ids[:8], (0, 4))), classes(classifier, ids[:8]), atol=1e-5)
for where, what, error in zip("CCD", ("loader over a tuple", "argmax over the words, no head", "argmax over a third dimension"), (tuple_error, head_error, third_error)):
    slip(f"{where} §5.2", what, "accuracy", hit, stops=error)
assert len(DataLoader(paired, batch_size=32)) == -(-pairs // 32) and classes(classifier, ids[:3]).shape == (3, 4) and padded, "the tests: items, shape, padding"

# %% stopping
model, drawn, log = listing(), stream(seed, "noise"), []
noisy = torch.where(torch.rand(few, generator=drawn) < noise, torch.randint(0, 4, (few,), generator=drawn), answer["train"][:few])


def validate(step):
    if (step + 1) % (few // 32) == 0:
        log.append((accuracy(model.eval(), "val"), deepcopy(model.state_dict())))


fit(model, lambda m, part: F.cross_entropy(m(inputs("train", part)), noisy[part]), few, size=32, steps=epochs * (few // 32), after=validate)
with torch.no_grad():
    on_train, last = (model(inputs("train", slice(few))).argmax(1) == noisy).float().mean().item(), accuracy(model, "test")
model.load_state_dict(max(log, key=lambda kept: kept[0])[1])
slip("C §5.2", "scored on the training pairs", "accuracy", last, on_train)
slip("B §2.3, E §3.2", "early stopping absent", "accuracy", accuracy(model, "test"), last)
assert accuracy(model, "val") == max(score for score, _ in log), "the test: what is kept has the best validation score of the run"

# %% table
printed = """
B-LOC 0.926 0.906 0.916 1668; I-LOC 0.900 0.805 0.850 257; B-MISC 0.875 0.856 0.865 702; I-MISC 0.838 0.782 0.809 216; B-ORG 0.914 0.898 0.906 1661
I-ORG 0.911 0.894 0.902 835; B-PER 0.964 0.957 0.960 1617; I-PER 0.983 0.980 0.982 1156; O 0.993 0.995 0.994 38323
"""
three = ["precision", "recall", "f1"]
ner = pd.DataFrame([row.split() for row in printed.replace(";", "\n").strip().splitlines()], columns=["tag", *three, "support"]).set_index("tag").astype(float)
averages = pd.DataFrame({"micro": [0.973] * 3, "macro": [0.923, 0.897, 0.909], "weighted": [0.973] * 3}, index=three).T


def micro(rows):
    """Precision, recall and F1 of all tokens of these rows, equation (8)."""
    hits = rows["recall"] * rows["support"]
    precision, recall = hits.sum() / (hits / rows["precision"]).sum(), hits.sum() / rows["support"].sum()
    return [precision, recall, 2 * precision * recall / (precision + recall)]


again = pd.DataFrame({"micro": micro(ner), "macro": ner[three].mean(), "weighted": ner[three].T @ ner["support"] / ner["support"].sum()}, index=three).T
print(pd.concat({"printed": averages, "from the class rows": again}, axis=1).to_string(float_format="%.3f"))

# %% table-test
share, half = ner["support"] / ner["support"].sum(), 0.0005  # half of the last printed digit
low, high = (((ner["recall"] + step) @ share).item() for step in (-half, half))
print(f"support {ner['support'].sum():.0f}, {share['O']:.3f} of it O; the class rows allow an accuracy of {low:.4f} to {high:.4f}, printed is {averages.loc['micro', 'recall']:.3f}")
assert (again - averages).loc["macro"].abs().max() < 2 * half and not low <= averages.loc["micro", "recall"] <= high
slip("D §5.4", "a tag table for sentiment", "micro F1; right: without O", micro(ner.drop("O"))[2], averages.loc["micro", "f1"])

# %% slips-figure
silent = [entry for entry in slips if entry["stops"] is None]
text = f"{len(slips) - len(silent)} of the {len(slips)} slips measured here stop with an error, {len(silent)} run to the end and give another number"
rest = "; ".join(f"{entry['what']}: {entry['stops'] or format(entry['wrong'], '.2f')}, right {entry['right']:.2f}" for entry in slips)
with plots.figure(width=9.5, height=6.2, alt=f"One line a slip, from the number as printed to the number made right. {text}. {rest}.",
                  caption=f"{text}. Crosses: as printed; an arrow means off the axis. Dots: made right. The grey words say which number.") as axes:
    for place, entry in enumerate(reversed(slips)):
        if entry["stops"]:
            axes.annotate(f"stops: {entry['stops']}", (0.01, place), va="center", fontsize=8.5, color=plots.VERMILION)
        else:
            axes.plot([max(entry["wrong"], 0), entry["right"]], [place, place], color=plots.GREY, linewidth=1.2)
            axes.plot(max(entry["wrong"], 0), place, "x" if entry["wrong"] >= 0 else "<", color=plots.VERMILION, markersize=8, markeredgewidth=2, zorder=3, clip_on=False)
        axes.plot(entry["right"], place, "o", color=plots.BLUE, markersize=8, clip_on=False)
        axes.annotate(entry["measure"], (1.04, place), va="center", fontsize=8, color=plots.GREY, annotation_clip=False)
    axes.set_yticks(range(len(slips)), [f"{entry['what']}  ({entry['where']})" for entry in reversed(slips)], fontsize=8.5)
    axes.set(xlim=(0, 1.0), ylim=(-0.6, len(slips) - 0.4), xlabel="the number named at the right")

# %% entity-scores
def entity_scores(rows):
    """(precision, recall, F1) of all tags but O, pooled; rows: (tag, precision, recall, support)."""
    hits, given, there = (sum(values) for values in zip(*((r * n, r * n / p, n) for tag, p, r, n in rows if tag != "O")))
    precision, recall = hits / given, hits / there
    return precision, recall, 2 * precision * recall / (precision + recall)

# %% entity-scores-check
def rounded(*rows):
    return [round(value, 4) for value in entity_scores(list(rows))]


assert rounded(("B-PER", 0.5, 1.0, 10), ("O", 0.9, 0.9, 1000)) == [0.5, 1.0, 0.6667], "one entity tag alone keeps its own precision and recall"
assert rounded(("B-PER", 1.0, 0.5, 100), ("B-LOC", 0.2, 1.0, 20))[0] == 0.4667, "70 of the 150 tokens given a tag are hits: precision 0.4667"
assert rounded(("B-PER", 1.0, 0.5, 100), ("B-LOC", 0.2, 1.0, 20))[1:] == [0.5833, 0.5185], "recall is 70 of 120; F1 is that of the pooled values"
assert rounded(("O", 0.9, 0.9, 1000), ("B-PER", 0.8, 0.4, 50), ("I-PER", 0.5, 0.6, 5)) == [0.7419, 0.4182, 0.5349], "O may stand anywhere"
print("of the printed table: precision {:.3f}, recall {:.3f}, F1 {:.3f}".format(*entity_scores(list(zip(ner.index, ner["precision"], ner["recall"], ner["support"])))))

# %% unreached
def unreached(optimizer, **modules):
    """Sorted names of the modules with a trainable parameter that the optimiser does not hold."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return sorted(name for name, module in modules.items() if any(p.requires_grad and id(p) not in held for p in module.parameters()))

# %% unreached-check
text_part, image_part = nn.Linear(2, 2), nn.Linear(2, 2)
optimizer = torch.optim.AdamW(text_part.parameters())
assert unreached(optimizer, model=text_part, image_model=image_part) == ["image_model"], "E's optimiser holds the text model alone"
optimizer.add_param_group({"params": image_part.parameters()})
assert unreached(optimizer, model=text_part, image_model=image_part) == [], "a second parameter group counts"
assert unreached(torch.optim.AdamW([text_part.weight, image_part.weight]), b=text_part, a=image_part) == ["a", "b"], "one parameter left out is enough; names are sorted"
assert unreached(optimizer, frozen=nn.Linear(2, 2).requires_grad_(False)) == [], "a frozen module is meant to stay"
assert unreached(optimizer, twin=deepcopy(text_part)) == ["twin"], "equal values are not the same parameter"
print("left out by E's optimiser:", unreached(torch.optim.AdamW(both.members[0].parameters()), text=both.members[0], image=both.members[1]))

# %% findings
display(Markdown(
    f"* {text}.\n* Trained with the minus sign twice, a model that could have {hits['right']:.0%} right has **{hits['minus sign twice']:.0%}**; your guess was {guess:.0%}.\n"
    f"* With E's optimiser the listing ends at {scores['text model']:.2f} instead of **{scores['text and image model']:.2f}**, without a message.\n"
    f"* On {few} pairs with a share of {noise:g} of the labels drawn anew, the score on the training pairs is {on_train:.2f}, the test score {last:.2f}, and with early stopping **{accuracy(model, 'test'):.2f}**.\n"
    f"* D's micro F1 is printed as {averages.loc['micro', 'f1']:.3f}; its class rows give {again.loc['micro', 'f1']:.3f}; without O they give **{micro(ner.drop('O'))[2]:.3f}**. A tagger that only says O has an accuracy of {share['O']:.3f}."
))
