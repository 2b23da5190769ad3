# Would you notice that a formula or a listing you copied is wrong?
# The code of 18_the_sources_made_right.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
from types import SimpleNamespace

import pandas as pd
import torch
from IPython.display import Markdown, display
from torch import nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.utils.data import DataLoader
from torchvision.transforms.functional import to_tensor
from transformers import BertConfig, BertModel
from transformers import BertForSequenceClassification, BertForTokenClassification

import mmkit
from mmkit.explain import pulls, slips
from mmkit.models import CNN, Average, TextTransformer
from mmkit.models.captioner import AttentionGRU
from mmkit.models.text import vocabulary
from mmkit.tasks.captioning import fact_scores
from mmkit.teach import plots
from mmkit.training import batches, seeded, stream

# %% parameters
pairs: int = 1024  # training pairs
steps: int = 64  # steps of each small training; three times as many for captions
few: int = 192  # pairs of the training that overfits
noise: float = 0.5  # share of those pairs whose label is drawn anew
epochs: int = 16  # passes over them
repeats: int = 5  # seeds of that training
seed: int = 0  # data order, first weights and noise, each from its own stream

# %% data
dataset = mmkit.load("scenes", both=0.0, train=pairs, val=300, test=500, ood=0, pool=512)
task, words, found = mmkit.tasks.Answering(dataset), vocabulary(dataset), slips.Slips()


def load(split):
    """Pixels x, captions, ids of the words asked and told, and labels of one split."""
    rows = dataset.rows(split)
    data = SimpleNamespace(rows=rows, x=dataset.pixels(rows))
    data.captions = dataset.texts_of(rows, role="caption")[0][::2]  # the first of two
    data.asked, data.told = words(dataset.texts_of(rows, role="question")[0]), words(data.captions)
    data.bag = F.one_hot(data.asked, len(words)).sum(1).clamp(max=1).float()  # word there or not
    names = "label_answer", "label_heading", "label_kind"
    data.answer, data.heading, data.kind = (dataset.labels(rows, name) for name in names)
    return data


train, val, test = map(load, ("train", "val", "test"))

# %% tools
def fit(model, loss_of, count, optimizer=None, *, steps=steps, size=64, order="order"):
    """Gradient steps on `loss_of(p)`, p the positions of a batch. Returns the loss at each step."""
    optimizer, losses = optimizer or AdamW(model.parameters(), lr=3e-3), []
    model.train()
    for _, p in zip(range(steps), batches(torch.arange(count), size, stream(seed, order))):
        optimizer.zero_grad()
        loss = loss_of(p)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def accuracy(logits, target):
    return (logits.argmax(1) == target).float().mean().item()

# %% guess
guess = {"stop": 12, "right": 0.5}

# %% guess-check
assert guess["stop"] in range(17), f"a number of slips, 0 to 16, got {guess['stop']}"
assert 0 <= guess["right"] <= 1, f"a share lies between 0 and 1, got {guess['right']}"

# %% signs
likelihood = lambda z, y: y * F.logsigmoid(z) + (1 - y) * F.logsigmoid(-z)  # bracket of (2)
LOSSES = {
    "two minus signs": lambda z, y: -(-likelihood(z, y)).mean(),  # (1)
    "no minus sign": lambda z, y: likelihood(z, y).mean(),  # (2)
    "label used as a factor": lambda z, y: -(y * F.logsigmoid(z)).mean(),  # (3)
    "right": lambda z, y: -likelihood(z, y).mean(),
}
z, y = torch.tensor([-4.0, 4.0]), torch.tensor([0.0, 1.0])  # logits on the right side, labels
for name, loss in LOSSES.items():
    less = [bool(loss(z[i], y[i]) < loss(-z[i], y[i])) for i in (0, 1)]
    print(f"{name}: a right answer costs less in class 0: {less[0]}, in class 1: {less[1]}")
    assert all(less) == (name == "right"), "the test: the three printed losses fail it"

# %% signs-trained
x, x_test = (data.bag - train.bag.mean(0) for data in (train, test))
y, y_test = (data.kind == dataset.classes("label_kind").index("text") for data in (train, test))
hits, r2, losses = {}, {}, {}
for name, loss in LOSSES.items():
    linear = seeded(seed, "linear", nn.Linear, len(words), 1)
    sgd = torch.optim.SGD(linear.parameters(), lr=1.0)
    losses[name] = fit(linear, lambda p: loss(linear(x[p])[:, 0], y[p].float()), pairs, sgd)
    hits[name] = ((linear(x_test)[:, 0] > 0) == y_test).float().mean().item()
for where, name in zip(("D §4.1", "D §4.2", "C §4.2"), LOSSES):
    found.add(where, name, "accuracy", hits[name], hits["right"], losses[name])

# %% reconstruction
actual = torch.randn(12, 8, generator=stream(seed, "table"))  # e: 12 words, 8 numbers each
gap = lambda guessed: (guessed - actual).square().sum(1).mean()  # (5)
mlm = lambda guessed: F.cross_entropy(guessed @ actual.T, torch.arange(12))  # (4)
for loss in (mlm, gap):
    table = seeded(seed, "guesses", nn.Embedding, 12, 8)
    losses[loss] = fit(table, lambda p: loss(table.weight), 12, AdamW(table.parameters(), lr=0.2))
    r2[loss] = 1 - (gap(table.weight) / gap(actual.mean(0))).item()
found.add("C §4.1", "reconstruction = MLM loss", "R²", r2[mlm], r2[gap], losses[mlm])
assert gap(actual) == 0 < mlm(actual), "the test: no gap costs nothing"

# %% separates
image, text = seeded(seed, "image", CNN), seeded(seed, "text", TextTransformer, len(words))
joint = task.build({"image": image, "text": text}, seed=seed)
apart = [task.build(parts, seed=seed) for parts in ({"image": image}, {"text": text})]


def pull(models, ids, some=slice(64)):
    """Gradient of the sum of the models' losses for the image encoder, as one vector."""
    shown, y = {"image": train.x[some], "text": ids[some]}, train.answer[some]
    return pulls.pull(sum(F.cross_entropy(model(shown), y) for model in models), image)


moved = {}
for name, models in (("(6)", apart), ("(7)", [joint])):
    g, exchanged = pull(models, train.asked), pull(models, train.asked.roll(1, 0))
    moved[name] = ((g - exchanged).norm() / g.norm()).item()
found.add("A §4.2", "joint objective separates", "effect of the text", moved["(6)"], moved["(7)"])
assert moved["(6)"] < 1e-5 < 0.01 < moved["(7)"], "the test of coupling"

# %% models
def inputs(data, p=slice(None)):
    return {"image": data.x[p], "text": data.asked[p]}


def answer_loss(model, data):
    return lambda p: F.cross_entropy(model(inputs(data, p)), data.answer[p])


def listing(seed):
    """E's two models; `Average` takes the mean of their log-probabilities."""
    text, image = seeded(seed, "text", TextTransformer, len(words)), seeded(seed, "image", CNN)
    return Average([task.build(parts, seed=seed) for parts in ({"text": text}, {"image": image})])

# %% optimiser
scores, still = {}, {}
for name in ("as printed", "made right"):
    both, start = listing(seed), listing(seed).state_dict()
    held = both.members[0] if name == "as printed" else both  # what the optimiser is given
    losses[name] = fit(both, answer_loss(both, train), pairs, AdamW(held.parameters(), lr=3e-3))
    scores[name] = accuracy(both(inputs(test)), test.answer)
    still[name] = sum(tensor.equal(start[key]) for key, tensor in both.state_dict().items())
    print(f"{name}: {still[name]} of {len(start)} tensors never moved")
what, (alone, fused) = "image model not in the optimiser", scores.values()
found.add("E §5.2", what, "accuracy", alone, fused, losses["as printed"])
assert still["as printed"] > still["made right"] == 0, "the test of reach"

# %% captions
captioning = mmkit.tasks.Captioning(dataset)
parts = {"image": seeded(seed, "image", CNN)}
parts["text"] = seeded(seed, "decoder", AttentionGRU, len(captioning.words))
captioner, ids = captioning.build(parts, seed=seed), captioning.words(train.captions)
fit(captioner, lambda p: captioner({"image": train.x[p]}, ids[p]), pairs, steps=3 * steps)
written = captioning.predict(captioner, {"image": test.x})  # the loss was that of the next word
facts = lambda texts: fact_scores(texts, [[text] for text in test.captions])["facts"].items
told, exchanged = facts(written), facts(written[1:] + written[:1]).mean()
best = (told * ["large" in text for text in test.captions]).argmax()  # small ones are hard to see
best_worst = [(test.x[i], written[i], test.captions[i]) for i in (best, told.argmin())]
with plots.figure(1, 2, width=10, height=1.9, alt=" ".join(slips.captions(best_worst))) as axes:
    slips.draw_captions(axes, best_worst)
print(f"facts told right {told.mean():.2f}, with the next photo's caption {exchanged:.2f}")
own, other = (captioner({"image": train.x[:64].roll(by, 0)}, ids[:64]) for by in (0, 1))
assert abs(own - other) > 1e-6, "the test of captions"

# %% folders
photos, target = slips.from_folders(train.x, train.heading)  # by ImageFolder
model_v = seeded(seed, "folders", lambda: nn.ModuleDict({"cnn": CNN(), "fc": nn.Linear(128, 256)}))
see = lambda x: model_v.fc(model_v.cnn(x).summary)
losses = fit(model_v, lambda p: F.cross_entropy(see(photos[p]), target[p]), pairs, steps=3 * steps)
print("of 256 outputs it ever gives", see(test.x).argmax(1).unique().tolist())
named = accuracy(see(test.x), test.heading) / 7
found.add("A §5.2", "folder numbers as captions", "facts told", named, told.mean(), losses)

# %% classifier
small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_labels": 4}
bert = BertConfig(vocab_size=len(words), intermediate_size=128, **small)
classifier = seeded(seed, "classifier", BertForSequenceClassification, bert)
classify = lambda ids: classifier(ids, attention_mask=(ids > 0).long()).logits
fit(classifier, lambda p: F.cross_entropy(classify(train.told[p]), train.heading[p]), pairs)
hit, ids = accuracy(classify(test.told), test.heading), test.told[:32]
assert classify(ids).shape == (32, 4), "the test: one answer an item"
assert classify(F.pad(ids, (0, 4))).allclose(classify(ids), atol=1e-5), "the test: padding"

# %% stops
def stop(source, what, line, right, measure="accuracy"):
    """Run a printed line with the variables of this notebook; right: the number made right."""
    print(f"{source}: {line}")
    found.add(f"{source} §5.2", what, measure, slips.error_of(line, globals()), right)


model_t, img, labels = BertForTokenClassification(bert), test.x[:4].float(), test.heading[:32]
stop("A", "photos to a token classifier", "t_outputs = model_t(img)", told.mean(), "facts told")
train_loader = DataLoader(({"input_ids": ids}, labels), batch_size=32, sampler=(1, 0))
stop("C", "data loader over a tuple", "for batch in train_loader: inputs, labels = batch", hit)
logits = BertModel(bert)(ids)[0]
lines = "pred = logits.argmax(dim=1); acc = (pred == labels).float().mean()"
stop("C", "argmax over words, no head", lines, hit)
outputs = classifier(ids)
stop("D", "argmax over a third dimension", "batch_preds = outputs.logits.argmax(dim=2)", hit)
self, text = SimpleNamespace(transform=to_tensor), test.captions[0]
stop("E", "image transform on a text", "text = self.transform(text)", fused)
outputs, image_outputs = model_t(ids), torch.rand(32, 1000)
stop("E", "loss = sum of two models' outputs", "loss = outputs + image_outputs", fused)

# %% stopping
def overfit(seed):
    """After each epoch the accuracy on noisy training pairs, validation and test items."""
    model, drawn, log = listing(seed), stream(seed, "noise"), []
    redrawn = torch.rand(few, generator=drawn) < noise
    y = torch.where(redrawn, torch.randint(4, (few,), generator=drawn), train.answer[:few])
    noisy = SimpleNamespace(x=train.x[:few], asked=train.asked[:few], answer=y)
    loss, adam = answer_loss(model, noisy), AdamW(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        fit(model, loss, few, adam, steps=few // 32, size=32, order=f"{seed} {epoch}")
        log.append([accuracy(model(inputs(data)), data.answer) for data in (noisy, val, test)])
    return log


keep = lambda scores: scores.index(max(scores))  # the epoch whose weights are kept
assert keep([0.3, 0.7, 0.6]) == 1, "the test of stopping: the best epoch, not the last"
logs = [overfit(seed + more) for more in range(repeats)]
on_train, _, last = zip(*(log[-1] for log in logs))
best = [log[keep([val for _, val, _ in log])][2] for log in logs]  # validation decides
found.add("C §5.2", "scored on the training pairs", "accuracy", on_train, last)
found.add("B §2.3, E §3.2", "early stopping absent", "accuracy", last, best)
assert not {*train.rows} & {*test.rows}, "the test of scores: no training item is scored"

# %% table
ROWS = """B-LOC 0.926 0.906 0.916 1668; I-LOC 0.900 0.805 0.850 257; B-MISC 0.875 0.856 0.865 702
; I-MISC 0.838 0.782 0.809 216; B-ORG 0.914 0.898 0.906 1661; I-ORG 0.911 0.894 0.902 835
; B-PER 0.964 0.957 0.960 1617; I-PER 0.983 0.980 0.982 1156; O 0.993 0.995 0.994 38323"""
three = ["precision", "recall", "f1"]
ner = pd.DataFrame([row.split() for row in ROWS.split(";")], columns=["tag", *three, "support"])
ner = ner.set_index("tag").astype(float)


def micro(rows):
    """Precision, recall and F1 of all tokens of these rows, equation (8)."""
    hits = rows["recall"] * rows["support"]
    given, there = hits / rows["precision"], rows["support"]
    precision, recall = hits.sum() / given.sum(), hits.sum() / there.sum()
    return [precision, recall, 2 * precision * recall / (precision + recall)]


share = ner["support"] / ner["support"].sum()
again = {"micro": micro(ner), "macro": ner[three].mean(), "weighted": ner[three].T @ share}
printed = {"micro": [0.973] * 3, "macro": [0.923, 0.897, 0.909], "weighted": [0.973] * 3}
tables = [pd.DataFrame(rows, index=three).T for rows in (printed, again)]
print(pd.concat(tables, axis=1, keys=["printed", "from rows"]).to_string(float_format="%.3f"))

# %% table-test
low, high = (((ner["recall"] + half) @ share).item() for half in (-0.0005, 0.0005))  # rounding
print(f"{share['O']:.3f} of the tokens are O; accuracy {low:.4f} to {high:.4f}, printed 0.973")
assert abs(tables[1] - tables[0]).loc["macro"].max() < 0.001, "macro follows from the rows"
assert not low <= 0.973 <= high, "the test: micro and weighted do not"
found.add("D §5.4", "tag table for sentiment", "F1 (right: no O)", 0.973, micro(ner.drop("O"))[2])

# %% slips-figure
silent, stopped, (fell, tried) = found.silent, found.stopped, found.fell()
caption = f"""{len(stopped)} of {len(found)} slips stop with an error, {len(silent)} run to the end.
{tried} of these were trained as printed, and in {fell} the loss fell."""
size = {"width": 10, "height": 6.4, "gridspec_kw": {"height_ratios": [len(silent), len(stopped)]}}
with plots.figure(2, alt=f"{caption} {found}", caption=caption, **size) as (above, below):
    slips.draw_silent(above, silent, wrong=plots.VERMILION, right=plots.BLUE, grey="0.3")
    slips.draw_stopped(below, stopped, wrong=plots.VERMILION)

# %% passes
def passes(loss):
    """Whether, for either class, an answer on the right side costs less than its mirror image."""
    answers = [(torch.tensor([8 * y - 4]), torch.tensor([y])) for y in (0.0, 1.0)]
    return all(bool(loss(z, y) < loss(-z, y)) for z, y in answers)

# %% passes-check
assert passes(LOSSES["right"]), "the loss with one minus sign passes"
assert not any(map(passes, list(LOSSES.values())[:3])), "the three printed losses fail"
assert passes(lambda z, y: (torch.sigmoid(z) - y).square().mean()), "a squared error is a loss"
assert not passes(lambda z, y: z.new_zeros(())), "a constant teaches nothing"
assert not passes(lambda z, y: -((1 - y) * F.logsigmoid(-z)).mean()), "class 1 weighs nothing"

# %% unreached
def unreached(optimizer, **modules):
    """Sorted names of the modules with a trainable parameter that the optimiser does not hold."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    free = {name: [p for p in m.parameters() if p.requires_grad] for name, m in modules.items()}
    return sorted(name for name, params in free.items() if not held.issuperset(map(id, params)))

# %% unreached-check
one, two = nn.Linear(2, 2), nn.Linear(2, 2)
optimizer = AdamW(one.parameters())
assert unreached(optimizer, model=one, image_model=two) == ["image_model"], "E's optimiser"
optimizer.add_param_group({"params": two.parameters()})
assert unreached(optimizer, model=one, image_model=two) == [], "a second parameter group counts"
some, rest = AdamW([one.weight, two.weight]), nn.Linear(2, 2).requires_grad_(False)
assert unreached(some, b=one, a=two) == ["a", "b"], "one left out is enough; names are sorted"
assert unreached(optimizer, frozen=rest) == [], "a frozen module is meant to stay"

# %% findings
lines = [f"The run would not have told her. {caption} You guessed that {guess['stop']} would stop."]
lines += [f"{slip}." for slip in silent]
lines[1] += f" You guessed {guess['right']:.0%}."
display(Markdown("\n".join(f"* {line}" for line in lines)))
