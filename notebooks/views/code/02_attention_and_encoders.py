# What does a long input cost a Transformer, a ViT or a Perceiver, and what does the price buy?
# The code of 02_attention_and_encoders.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import inspect

import torch
from IPython.display import Markdown, display
from torch import nn
from torch.nn import functional as F

import mmkit
from mmkit.deploy.measure import Saved
from mmkit.explain import attention as seen
from mmkit.models import Attention, Block, TextTransformer, Transformer, ViT, pretrained
from mmkit.models.encoded import masked_mean
from mmkit.models.text import vocabulary
from mmkit.teach import plots
from mmkit.training import flops_of, seeded, stream

# %% parameters
data: str = "scenes"  # data set with captions: a recipe or one of your own
caption: str = "a brown dog runs after a red ball on the beach ."  # its attention maps are drawn
sentences: int = 32  # captions that MiniLM reads
dim: int = 384  # width D of a token, as in MiniLM
heads: int = 12  # attention heads H, a divisor of dim
widening: int = 4  # hidden width of the FFN, in D
latents: int = 32  # learned queries M of the Perceiver
lengths: list[int] = [64, 128, 256, 512]  # tokens T at which cost is measured
long: int = 2048  # tokens that Lena wants to read: the cost is counted only
seed: int = 0  # decides first weights and random inputs

# %% guess
guess = 500

# %% guess-check
assert isinstance(guess, int | float) and guess > 0, f"tokens: a positive number, got {guess!r}"

# %% attention
def attention(q, k, v, mask=None):
    """Equation (1): q (B, H, T, d), k, v (B, H, S, d), mask True where seen -> values, weights."""
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    weights = logits.softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v), weights


def gap(a, b):
    return float((a - b).detach().abs().max())


q, k, v = torch.randn(3, 2, heads, 10, 16, dtype=torch.float64, generator=stream(seed, "qkv"))
causal = torch.ones(10, 10).bool().tril()  # a query sees itself and what came before
for name, mask in {"without a mask": None, "under a causal mask": causal}.items():
    kernel = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    print(f"(1) is PyTorch's kernel {name}: {gap(attention(q, k, v, mask)[0], kernel) < 1e-6}")

# %% multi-head
for part in (Attention, Block):
    display(Markdown(f"```python\n{inspect.getsource(part)}\n```"))

# %% block
class WeightsStored(Attention):
    """The kit's attention with equation (1) written out."""

    def forward(self, x, context=None, mask=None):
        context = x if context is None else context
        q, k, v = self.query(x), self.key(context), self.value(context)
        mask = None if mask is None else mask[:, None, None]
        mixed, _ = attention(self.split(q), self.split(k), self.split(v), mask)
        return self.out(mixed.transpose(1, 2).flatten(2))


def reading(block, x, context, mask=None):
    """Equation (3) with a context, by the weights of a block."""
    x = x + block.attention(block.norm1(x), block.norm1(context), mask)
    return x + block.mlp(block.norm2(x))

# %% promises
block = seeded(seed, "block", Block, dim, heads).double()
x, table = torch.randn(2, 1, 10, dim, dtype=torch.float64, generator=stream(seed, "tokens"))
other = torch.cat([x[:, :6], -x[:, 6:]], dim=1)  # the last four tokens are changed
order, real = torch.randperm(10, generator=stream(seed, "order")), torch.arange(10)[None] < 6
past, changed = (attention(*[tokens[None]] * 3, causal)[0][0] for tokens in (x, other))
for name, change in {
    "order, without positions": gap(block(x[:, order]), block(x)[:, order]),
    "order, with positions": gap(block(x[:, order] + table), block(x + table)[:, order]),
    "padding, without a mask": gap(block(x)[:, :6], block(other)[:, :6]),
    "padding, under a padding mask": gap(block(x, real)[:, :6], block(other, real)[:, :6]),
    "the future, under a causal mask": gap(past[:, :6], changed[:, :6]),
}.items():
    print(f"is it seen? {name:32} {'yes' if change > 1e-6 else 'no'}")

# %% encoder
encoder = seeded(seed, "encoder", Transformer, dim, 2, heads)


def encode(x, real=None, context=None, context_real=None):
    """The encoder; its first block reads the context, if there is one."""
    for block in encoder.blocks:
        x = block(x, real) if context is None else reading(block, x, context, context_real)
        context = None  # all others read the tokens
    return encoder.norm(x)

# %% tokens
dataset = mmkit.load(data)
rows, words = dataset.rows("test")[:4], vocabulary(dataset)
ids = words([dataset.texts_of([row])[0][0] for row in rows])
said, real = seen.before_blocks(TextTransformer(len(words), dim=dim, heads=heads), ids)
patches, _ = seen.before_blocks(ViT(dim=dim, heads=heads), dataset.pixels(rows))
kind, asked = torch.randn(2, dim), nn.Parameter(torch.randn(1, latents, dim))  # both are learned
both = torch.cat([said + kind[0], patches + kind[1]], dim=1)
both_real = F.pad(real, (0, patches.shape[1]), value=True)

# %% family
family = {
    "Transformer": (said, real),
    "ViT": (patches,),
    "unified": (both, both_real),
    "cross-attention": (said, real, patches),
    "Perceiver": (asked.expand(len(ids), -1, -1), None, both, both_real),
}
for name, inputs in family.items():
    print(f"{name:15} {tuple(inputs[0].shape)} -> {tuple(encode(*inputs).shape)}")
twin = seen.pytorch_layer(encoder.blocks[0])  # nn.TransformerEncoderLayer with these weights
apart = gap(encoder.blocks[0](said, real)[real], twin(said, src_key_padding_mask=~real)[real])
print(f"the block is PyTorch's own layer: {apart < 1e-5}")

# %% counted
def counted(T, D=dim, H=heads, M=latents, f=widening):
    """FLOPs forward and floats kept for the backward pass: equations (4), (5) and relatives."""
    maps, products = (8 + 4 * f) * D * D * T, 4 * D * T * T
    kept = ((8 + 2 * f) * D + 4) * T
    reading = 4 * D * D * T + 4 * M * D * T + (4 + 4 * f) * D * D * M
    kept_reading = (4 * D + 2) * T + H * M * T + ((5 + 2 * f) * D + 4) * M
    return {
        "attention, weights stored": (maps + products, kept + H * T * T),
        "attention, fused kernel": (maps + products, kept + H * T),
        "Perceiver, reading": (reading, kept_reading),
        "GRU": (12 * D * D * T, 8 * D * T),
        "CNN": (6 * D * D * T, D * T),
    }

# %% layers
stored, fused = (Block(dim, heads, hidden=widening * dim) for _ in range(2))
stored.attention = WeightsStored(dim, heads)
gru, conv = nn.GRU(dim, dim, batch_first=True), nn.Conv1d(dim, dim, 3, padding=1)
layers = {
    "attention, weights stored": stored,
    "attention, fused kernel": fused,
    "Perceiver, reading": lambda x: reading(stored, asked, x),
    "GRU": lambda x: gru(x)[0],
    "CNN": lambda x: conv(x.mT).mT,
}

# %% costs
measured, errors = {T: {} for T in lengths}, []
for T in lengths:
    for name, layer in layers.items():
        x = torch.randn(1, T, dim).requires_grad_().clone()  # as an earlier layer gives it
        with Saved() as saved:
            flops = flops_of(lambda: layer(x))
        measured[T][name] = flops, saved.total / 4
        errors += [abs(m / c - 1) for m, c in zip(measured[T][name], counted(T)[name])]
print(f"{len(errors)} measured costs, each as counted to 1 %: {max(errors) < 0.01}")
equal = (2 + widening) * dim
print(f"the two products cost as much as the rest at {equal:,} tokens; your guess: {guess:,.0f}")

# %% cost-figure
about = f"A layer of width {dim}, one input. Marks: measured. Lines: counted, run or not."
alt = f"{about} At {long:,} tokens: {seen.in_words(counted(long))}."
titles = "The fused kernel saves no FLOPs,", "but most of the memory"
with plots.figure(1, 2, width=8.6, height=3.7, alt=alt, caption=about) as axes:
    seen.draw_costs(axes, counted, measured, longest=16384, titles=titles)
    seen.mark(axes[0], equal, f"equal: {equal:,}")
    seen.mark(axes[1], long, f"Lena: {long:,}")

# %% minilm
minilm = pretrained("minilm").double().requires_grad_(False)


def read(texts, visible=True, erased=()):
    """MiniLM by equation (1): tokens (B, T, D), maps (B, layers, H, T, T), real (B, T).

    visible: (T, T), which tokens each may see. erased: places whose values are set to 0."""
    ids, maps = minilm.tokenizer(texts), []
    real, x = ids != 0, minilm.body.embeddings(input_ids=ids)
    mask = real[:, None, None] & (visible | ~real[:, None, :, None])  # no query without a key
    for layer in minilm.body.encoder.layer:
        linear = layer.attention.self
        three = linear.query(x), linear.key(x), linear.value(x)
        q, k, v = (part.unflatten(2, (12, -1)).transpose(1, 2) for part in three)  # 12 heads
        v[:, :, list(erased)] = 0
        mixed, weights = attention(q, k, v, mask)
        maps.append(weights)
        x = layer.attention.output(mixed.transpose(1, 2).flatten(2), x)  # map, sum and norm
        x = layer.output(layer.intermediate(x), x)
    return x, torch.stack(maps, dim=1), real

# %% heads-found
texts = [dataset.texts_of([row])[0][0] for row in dataset.rows("test")[:sentences]]
bags = [seen.in_any_order(text, stream(seed, text)) for text in texts]
x, maps, real = read(texts)
theirs = minilm(minilm.tokenizer(texts)).tokens
print(f"equation (1) inside MiniLM gives MiniLM's tokens: {gap(x[real], theirs[real]) < 1e-6}")
found, shuffled = seen.looks(maps, real), seen.looks(*read(bags)[1:])
top = {name: divmod(int(weight.argmax()), weight.shape[1]) for name, weight in found.items()}
for name, at in top.items():
    weights = f"{found[name][at]:4.0%} of its weight, {shuffled[name][at]:4.0%} with shuffled words"
    print(f"{name:11} most in layer {at[0]}, head {at[1]:2}: {weights}")
on_cls, tokens = found["[CLS]"].mean(), real.sum(1).double().mean()
print(f"[CLS] gets {on_cls:.0%} of all weight, one of {tokens:.0f} tokens")

# %% needed
def vectors(**change):
    tokens, _, real = read(texts, **change)
    return masked_mean(tokens, real)


place = torch.arange(real.shape[1])
window = (place[:, None] - place).abs() <= 2
changes = {
    "[CLS] hidden": {"visible": place != 0},
    "[CLS] erased": {"erased": [0]},
    "second word hidden": {"visible": place != 2},
    "second word erased": {"erased": [2]},
    "window of 5": {"visible": window},
    "window and [CLS]": {"visible": window | (place == 0)},
}
whole = vectors()
left = {name: F.cosine_similarity(vectors(**change), whole) for name, change in changes.items()}
left["another caption"] = F.cosine_similarity(whole.roll(1, 0), whole)
for name, values in left.items():
    print(f"{name:18} cosine to the whole model's vector {values.mean():.3f}")

# %% map-figure
drawn, names = read([caption])[1][0], seen.token_names(caption, minilm.tokenizer)
shown = {"reads the word before": drawn[top["word before"]], "rests on [CLS]": drawn[top["[CLS]"]]}
about = "Two heads of MiniLM, bright is weight 1. Right: a dot is a caption, a diamond the mean."
alt = about + "; ".join(f" {name} {values.mean():.2f}" for name, values in left.items())
with plots.figure(1, 3, width=10.5, height=4.2, alt=alt, caption=about) as axes:
    seen.draw_maps(axes[:2], shown, names)
    seen.draw_changes(axes[2], left, reference="another caption")
    axes[2].set(title="Taken away: what is left", xlabel="cosine to the whole model's vector")

# %% attend
def attend(q, k, v, real, heads):
    """q (B, T, D), k and v (B, S, D), real (B, S) bool -> (B, T, D): heads split, mixed by
    equation (1) over real keys, joined; zeros where no key is real."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    logits = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~real[:, None, None], -torch.inf)
    weights = logits.softmax(-1).masked_fill(~real.any(1)[:, None, None, None], 0.0)
    return (weights @ v).transpose(1, 2).flatten(2)

# %% attend-check
random, options = stream(seed, "answers"), {"dtype": torch.float64, "requires_grad": True}
q, k, v = (torch.randn(3, length, 12, generator=random, **options) for length in (5, 7, 7))
every, some = torch.ones(3, 7).bool(), torch.arange(7) < torch.tensor([[7], [4], [1]])
columns = [[part[..., h : h + 4] for part in (q, k, v)] for h in (0, 4, 8)]
wanted = torch.cat([F.scaled_dot_product_attention(*three) for three in columns], dim=-1)
assert gap(attend(q, k, v, every, 3), wanted) < 1e-6, "heads side by side, root of d, over keys"
masked, cut = attend(q, k, v, some, 3), attend(q, k[:, :4], v[:, :4], every[:, :4], 3)
assert gap(masked[1], cut[1]) < 1e-6, "padding must act as if it were cut off"
missing = attend(q, k, v, some & torch.tensor([[True], [False], [True]]), 3)
assert not missing[1].any() and gap(missing[::2], masked[::2]) < 1e-6, "no real key: zeros"
pulls = torch.autograd.grad(missing.sum(), (q, k, v))
assert all(pull.isfinite().all() for pull in pulls), "NaN backward: mask weights, not results"

# %% stream-attend
def stream_attend(q, k, v, size):
    """Equation (1) for one head, q (T, d), k and v (S, d) -> (T, d), `size` keys at a time."""
    top, total, mixed = torch.full_like(q[:, :1], -torch.inf), 0.0, 0.0
    for keys, values in zip(k.split(size), v.split(size)):
        logits = q @ keys.T / q.shape[-1] ** 0.5
        higher = torch.maximum(top, logits.amax(1, keepdim=True))
        weights, shrink = (logits - higher).exp(), (top - higher).exp()
        total = total * shrink + weights.sum(1, keepdim=True)
        mixed, top = mixed * shrink + weights @ values, higher
    return mixed / total

# %% stream-attend-check
q, k, v = (torch.rand(length, 8, generator=random, **options) for length in (6, 64, 64))
exact = F.scaled_dot_product_attention
assert gap(stream_attend(q, k, v, 16), exact(q, k, v)) < 1e-6, "equation (1), in parts"
for factor, size in ((1, 10), (1e4, 16), (-1e4, 16)):  # a shorter last part; far from 0
    apart = gap(stream_attend(factor * q, k, v, size), exact(factor * q, k, v))
    assert apart < 1e-6, f"wrong for {size} keys at a time, logits times {factor:g}"
with Saved() as saved:
    stream_attend(q, k, v, 4)
assert max(saved.sizes, default=0) <= v.nbytes / 8, "a tensor of the size of all logits was made"

# %% findings
costs = list(counted(long).values())  # weights stored, fused kernel, Perceiver, ...
gigabytes = [32 * 6 * 4 * floats / 1e9 for _, floats in costs]
mean = {name: values.mean() for name, values in left.items()}
text_found = f"""
* **Lena's answer.** {long:,} tokens, 32 at a time in 6 layers, keep {gigabytes[0]:.0f} GB with the
  weights stored, **{gigabytes[1]:.0f} GB with the fused kernel**, which decides whether it fits.
* A Perceiver takes {costs[0][0] / costs[2][0]:.0f} times fewer FLOPs and leaves {latents} vectors.
* MiniLM gives **{on_cls:.0%}** of its weight to `[CLS]`. Hide it, and a caption's vector keeps a
  cosine of {mean["[CLS] hidden"]:.2f} (another caption's: {mean["another caption"]:.2f}). Erase
  what it says, and {mean["[CLS] erased"]:.3f} are left: the weight is parked there.
* A window of 5 tokens keeps {mean["window of 5"]:.2f}, with `[CLS]` {mean["window and [CLS]"]:.2f}.
* {len(family)} encoders are one `Transformer`. Its block is PyTorch's, its attention BERT's."""
display(Markdown(text_found))
