# What separates a Transformer, a ViT and a Perceiver, and what does each cost as the input grows?
# The code of 02_attention_and_encoders.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import inspect
from functools import partial

import torch
from IPython.display import Markdown, display
from torch import nn
from torch.nn import functional as F

import mmkit
from mmkit.models import Attention, Block, TextTransformer, Transformer, ViT, pretrained
from mmkit.models.text import vocabulary
from mmkit.models.vision import scaled
from mmkit.teach import plots
from mmkit.training import flops_of, seeded, stream

# %% parameters
data: str = "scenes"  # data set with captions: a recipe or one of your own
caption: str = "a brown dog runs after a red ball on the beach ."  # its attention maps are drawn
sentences: int = 64  # captions over which attention maps are averaged
dim: int = 64  # width D of a token
heads: int = 4  # attention heads H, a divisor of dim
latents: int = 8  # learned queries M of the Perceiver
lengths: list[int] = [64, 128, 256, 512, 1024, 2048]  # tokens T at which cost is measured
seed: int = 0  # decides first weights and random inputs

# %% guess
guess = 500

# %% guess-check
assert isinstance(guess, int | float) and guess > 0, f"tokens are a positive number, got {guess!r}"
print(f"noted: {guess:,.0f} tokens")

# %% attention
def attention(q, k, v, mask=None):
    """Equation (1): q (B, H, T, d), k and v (B, H, S, d) -> values (B, H, T, d), weights.

    mask: True where a query may see a key."""
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    weights = logits.softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v), weights


def gap(a, b):
    return float((a - b).detach().abs().max())


q, k, v = torch.randn(3, 2, heads, 10, 16, dtype=torch.float64, generator=stream(seed, "qkv"))
causal = torch.ones(10, 10, dtype=torch.bool).tril()  # a query sees itself and what came before
apart = max(gap(attention(q, k, v, mask)[0], F.scaled_dot_product_attention(q, k, v, attn_mask=mask)) for mask in (None, causal))
print(f"einsum and PyTorch's kernel, with and without a mask, agree to 1e-6: {apart < 1e-6}")

# %% multi-head
for part in (Attention, Block):
    display(Markdown(f"```python\n{inspect.getsource(part)}\n```"))

# %% block
class MapKept(Attention):
    """The kit's attention with equation (1) written out, which keeps the weights."""

    def forward(self, x, context=None, mask=None):
        context = x if context is None else context
        parts = self.query(x), self.key(context), self.value(context)
        mixed, self.map = attention(*map(self.split, parts), None if mask is None else mask[:, None, None])
        return self.out(mixed.transpose(1, 2).flatten(2))


def reading(block, x, context, mask=None):
    """Equation (3) with a context, by the weights of a block."""
    x = x + block.attention(block.norm1(x), block.norm1(context), mask)
    return x + block.mlp(block.norm2(x))

# %% positions
def sinusoid(length, width):
    """Equation (4): (length, width)."""
    angle = torch.arange(length, dtype=torch.float64)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


place = sinusoid(10, dim)
dots = place @ place.T  # one step down the diagonal is one step on in both positions
print(f"the dot product of two of {len(place)} positions depends on their distance alone: {gap(dots[1:, 1:], dots[:-1, :-1]) < 1e-6}")

# %% promises
block = seeded(seed, "block", Block, dim, heads).double()
x = torch.randn(1, 10, dim, dtype=torch.float64, generator=stream(seed, "tokens"))
other = torch.cat([x[:, :6], -x[:, 6:]], dim=1)  # the last four tokens are changed
order, real = torch.randperm(10, generator=stream(seed, "order")), torch.arange(10)[None] < 6
past = [attention(*[tokens[None]] * 3, causal)[0][0] for tokens in (x, other)]
for name, change in {
    "order, without positions": gap(block(x[:, order]), block(x)[:, order]),
    "order, with positions": gap(block(x[:, order] + place), block(x + place)[:, order]),
    "padding, without a mask": gap(block(x)[:, :6], block(other)[:, :6]),
    "padding, under a padding mask": gap(block(x, real)[:, :6], block(other, real)[:, :6]),
    "the future, under a causal mask": gap(past[0][:, :6], past[1][:, :6]),
}.items():
    print(f"is it seen? {name:32} {'yes' if change > 1e-6 else 'no'}")

# %% encoder
encoder = seeded(seed, "encoder", Transformer, dim, 2, heads)


def encode(x, real=None, context=None, context_real=None):
    """The first block reads the context, if there is one; all others read the tokens themselves."""
    first, *others = encoder.blocks
    x = first(x, real) if context is None else reading(first, x, context, context_real)
    for block in others:
        x = block(x, real)
    return encoder.norm(x)

# %% tokens
dataset = mmkit.load(data)
rows, words = dataset.rows("test")[:4], vocabulary(dataset)
ids = words([dataset.texts_of([row])[0][0] for row in rows])
vit = seeded(seed, "image", ViT, dim=dim, heads=heads)
text = seeded(seed, "text", TextTransformer, len(words), dim=dim, heads=heads)
patches = vit.patches(scaled(dataset.pixels(rows), vit.size)).flatten(2).transpose(1, 2) + vit.positions
said, real = text.words(ids) + text.positions[:, : ids.shape[1]], ids != 0
kind, asked = torch.randn(2, dim, generator=stream(seed, "kind")), torch.randn(1, latents, dim, generator=stream(seed, "latents"))
both, both_real = torch.cat([said + kind[0], patches + kind[1]], 1), F.pad(real, (0, patches.shape[1]), value=True)

# %% family
family = {
    "Transformer": (said, real),
    "ViT": (patches,),
    "unified": (both, both_real),
    "cross-attention": (said, real, patches),
    "Perceiver": (asked.expand(len(ids), -1, -1), None, both, both_real),
}
for name, inputs in family.items():
    keys = (inputs[0] if len(inputs) < 3 else inputs[2]).shape[1]
    print(f"{name:15} {inputs[0].shape[1]:3} queries x {keys:3} keys -> {tuple(encode(*inputs).shape)}")

# %% oracle
theirs = nn.TransformerEncoderLayer(dim, heads, 2 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
names = {"self_attn.out_proj": "attention.out", "linear1": "mlp.0", "linear2": "mlp.3", "norm1": "norm1", "norm2": "norm2"}
mine, state = text.body.blocks[0].state_dict(), {}
for kind_of in ("weight", "bias"):
    three = [mine[f"attention.{name}.{kind_of}"] for name in ("query", "key", "value")]
    state[f"self_attn.in_proj_{kind_of}"] = torch.cat(three)
    state |= {f"{to}.{kind_of}": mine[f"{name}.{kind_of}"] for to, name in names.items()}
theirs.load_state_dict(state)  # refuses a missing or a left-over weight
ours = text.body.blocks[0](said, real)[real]
print(f"our block equals PyTorch's own layer to 1e-5: {gap(ours, theirs(said, src_key_padding_mask=~real)[real]) < 1e-5}")

# %% counted
def counted(T, D=dim, H=heads, M=latents, f=2):
    """FLOPs forward and floats kept for the backward pass: equations (5), (6) and relatives."""
    maps, products = (8 + 4 * f) * D * D * T, 4 * D * T * T
    kept = ((8 + 2 * f) * D + 4) * T
    return {
        "attention, map kept": (maps + products, kept + H * T * T),
        "attention, fused": (maps + products, kept + H * T),
        "Perceiver": (4 * D * D * T + 4 * M * D * T + (4 + 4 * f) * D * D * M, (4 * D + 2) * T + H * M * T + ((5 + 2 * f) * D + 4) * M),
        "GRU": (12 * D * D * T, 8 * D * T),
        "CNN": (6 * D * D * T, D * T),
    }

# %% measure
def layer(kind):
    block = seeded(seed, "layer", Block, dim, heads)
    block.attention = seeded(seed, "attention", kind, dim, heads)
    return block


full, fused, reader = layer(MapKept), layer(Attention), layer(MapKept)
gru, conv = seeded(seed, "gru", nn.GRU, dim, dim, batch_first=True), seeded(seed, "conv", nn.Conv1d, dim, dim, 3, padding=1)
calls = full, fused, lambda x: reading(reader, asked, x), lambda x: gru(x)[0], lambda x: conv(x.mT).mT
layers = dict(zip(counted(1), zip((full, fused, reader, gru, conv), calls)))


def kept(call, *left_out):
    """Bytes of each storage that autograd keeps of `call()`, those of `left_out` not counted."""
    found, known = {}, {tensor.untyped_storage().data_ptr() for tensor in left_out}

    def pack(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return [storage.nbytes() for place, storage in found.items() if place not in known]

# %% costs
measured = {}
for name, (layer, call) in layers.items():
    for T in [*lengths, 32]:
        x = torch.randn(1, T, dim, generator=stream(seed, "long")).requires_grad_()
        measured[name, T] = flops_of(partial(call, x)), sum(kept(partial(call, x), asked, *layer.parameters())) / 4
    [slope] = torch.autograd.grad(call(x)[0, call(x).shape[1] // 2].sum(), x)
    print(f"{name:19} {sum(p.numel() for p in layer.parameters()):6,} parameters; the output in the middle depends on {int(slope.any(-1).sum()):2} of 32 inputs")
worst = max(abs(measured[name, T][unit] / counted(T)[name][unit] - 1) for name, T in measured for unit in (0, 1))
print(f"{len(measured)} measurements of {len(layers)} layers; FLOPs and memory as counted, to 5 %: {worst < 0.05}")

# %% cost-figure
before, last = lengths[-2:]
growth = "; ".join(f"{name} {' and '.join(f'{b / a:.1f}' for a, b in zip(measured[name, before], measured[name, last]))}" for name in layers)
with plots.figure(1, 2, width=10, height=4.2, alt=f"FLOPs and memory against tokens, log-log: straight lines of different slope with marks on them. Growth from {before} to {last} tokens: {growth}.",
                  caption=f"Lines: counted before the run. Marks: measured. From {before} to {last} tokens FLOPs and memory grow by: {growth}. Dashed: equation (5).") as axes:
    for unit, (axis, scale, title) in enumerate(zip(axes, (1e-9, 4e-6), ("forward pass (GFLOP)", "kept for the backward pass (MB)"))):
        for name, marker in zip(layers, "sD^ov"):
            [line] = axis.plot(lengths, [counted(T)[name][unit] * scale for T in lengths])
            axis.plot(lengths, [measured[name, T][unit] * scale for T in lengths], marker, color=line.get_color(), fillstyle="none", markersize=8, label=name)
        axis.set(xscale="log", yscale="log", xlabel="tokens", title=title, xticks=lengths, xticklabels=lengths)
        axis.minorticks_off()
    axes[0].axvline(4 * dim, color=plots.GREY, linestyle="--", linewidth=1)
    axes[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))

# %% crossover
width, many, expand = 384, 12, 4
star = (2 + expand) * width
for T in (512, star):
    q, x = torch.empty(1, many, T, width // many, device="meta"), torch.empty(1, T, width, device="meta")
    share = flops_of(partial(attention, q, q, q)) / flops_of(partial(Block(width, many, hidden=expand * width).to("meta"), x))
    print(f"{T:5,} tokens: the two products are {share:.0%} of the layer's FLOPs")
print(f"equal FLOPs by (5): {star:,} tokens; your guess: {guess:,.0f}; equal memory by (6): {((8 + 2 * expand) * width + 4) // many:,} tokens")

# %% minilm
minilm = pretrained("minilm").double().requires_grad_(False)
looking = []
for layer in minilm.body.encoder.layer:
    ours, theirs = MapKept(width, many), layer.attention.self
    ours.query, ours.key, ours.value, ours.out = theirs.query, theirs.key, theirs.value, layer.attention.output.dense
    looking.append(ours)


def read(texts):
    """MiniLM through our attention: tokens (B, T, D), maps (B, layers, H, T, T), real (B, T)."""
    ids = minilm.tokenizer(texts)
    x, real = minilm.body.embeddings(input_ids=ids), ids != 0
    for ours, layer in zip(looking, minilm.body.encoder.layer):
        x = layer.attention.output.LayerNorm(x + ours(x, mask=real))  # after the sum: BERT's way
        x = layer.output.LayerNorm(x + layer.output.dense(layer.intermediate(x)))
    return x, torch.stack([ours.map for ours in looking], 1), real

# %% heads-found
def looks(maps, real):
    """(3, layers, H): mean weight that a real token gives to the word before it, the word after it, and [CLS]."""
    weights = F.pad(maps.diagonal(-1, -2, -1), (1, 0)), F.pad(maps.diagonal(1, -2, -1), (0, 1)), maps[..., 0]
    return torch.stack([(weight * real[:, None, None]).sum((0, 3)) / (real.sum() - lacking * len(real)) for weight, lacking in zip(weights, (1, 1, 0))])


texts = dataset.texts_of(dataset.rows("test")[:sentences])[0][:sentences]
bags = [" ".join(text.split()[i] for i in torch.randperm(len(text.split()), generator=stream(seed, text))) for text in texts]
x, maps, real = read(texts)
found, shuffled = looks(maps, real), looks(*read(bags)[1:])
top = {name: divmod(int(weight.argmax()), many) for name, weight in zip(("word before", "word after", "[CLS]"), found)}
print(f"our attention gives MiniLM's tokens to 1e-6: {gap(x[real], minilm(minilm.tokenizer(texts)).tokens[real]) < 1e-6}")
for (name, at), was, now in zip(top.items(), found, shuffled):
    print(f"{name:11} most in layer {at[0]}, head {at[1]:2}: {was[at]:.0%} of its weight, {now[at]:.0%} with the words shuffled")

# %% map-figure
drawn = read([caption])[1][0]
labels = ["[CLS]", *(part for word in caption.split() for part in [word] + ["~"] * (minilm.tokenizer([word]).shape[1] - 3)), "[SEP]"]
with plots.figure(1, 3, width=10.5, height=4.2, sharey=True, alt=f"Attention maps of three heads of MiniLM on '{caption}': bright below the diagonal, above it, and in the first column.",
                  caption=f"Rows ask, columns answer: '{caption}' Two heads read the neighbours; the third rests on a token that is no word.") as axes:
    for axis, (name, at) in zip(axes, top.items()):
        axis.imshow(drawn[at], vmin=0, vmax=1, aspect="auto")
        axis.set(title=f"{name}: layer {at[0]}, head {at[1]}", yticks=range(len(labels)), yticklabels=labels)
        axis.set_xticks(range(len(labels)), labels, rotation=90)
        axis.grid(visible=False)

# %% attend
def attend(q, k, v, real, heads):
    """q (B, T, D), k and v (B, S, D), real (B, S) bool -> (B, T, D): heads split, mixed by
    equation (1) over real keys, joined; zeros where no key is real."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    logits = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~real[:, None, None], -torch.inf)
    weights = logits.softmax(-1).masked_fill(~real.any(1)[:, None, None, None], 0.0)
    return (weights @ v).transpose(1, 2).flatten(2)

# %% attend-check
q, k, v = (torch.randn(3, length, 12, dtype=torch.float64, generator=stream(seed, name)).requires_grad_() for length, name in ((5, "q"), (7, "k"), (7, "v")))
every, some = torch.ones(3, 7, dtype=torch.bool), torch.arange(7) < torch.tensor([[7], [4], [1]])
expected = torch.cat([F.scaled_dot_product_attention(q[..., h : h + 4], k[..., h : h + 4], v[..., h : h + 4]) for h in (0, 4, 8)], -1)
assert gap(attend(q, k, v, every, 3), expected) < 1e-6, "head h owns columns h d to (h + 1) d - 1; scale by the root of d, softmax over keys"
assert gap(attend(q, k, v, some, 3), attend(q, k * some[..., None], v * some[..., None], some, 3)) < 1e-6, "what is padded must not matter"
assert gap(attend(q, k, v, some, 3)[1], attend(q, k[:, :4], v[:, :4], every[:, :4], 3)[1]) < 1e-6, "padding must act as if it were cut off"
missing, present = torch.tensor([[7], [0], [1]]) > torch.arange(7), torch.tensor([[[1.0]], [[0.0]], [[1.0]]])
assert gap(attend(q, k, v, missing, 3), attend(q, k, v, some, 3) * present) < 1e-6, "an item without real keys gets zeros, the others stay as they are"
pulls = torch.autograd.grad(attend(q, k, v, missing, 3).sum(), (q, k, v))
assert all(pull.isfinite().all() for pull in pulls), "zeros forward, NaN backward: mask the weights, not the result"
print("heads, scale, padding and missing texts are right")

# %% stream-attend
def stream_attend(q, k, v, size):
    """Equation (1) for one head, q (T, d), k and v (S, d) -> (T, d), from `size` keys at a time."""
    top, total, mixed = torch.full_like(q[:, :1], -torch.inf), 0.0, 0.0
    for keys, values in zip(k.split(size), v.split(size)):
        logits = q @ keys.T / q.shape[-1] ** 0.5
        higher = torch.maximum(top, logits.amax(1, keepdim=True))
        weights, shrink = (logits - higher).exp(), (top - higher).exp()
        total, mixed, top = total * shrink + weights.sum(1, keepdim=True), mixed * shrink + weights @ values, higher
    return mixed / total

# %% stream-attend-check
q, k, v = (torch.rand(length, 8, dtype=torch.float64, generator=stream(seed, name)).requires_grad_() for length, name in ((6, "q"), (64, "k"), (64, "v")))
assert gap(stream_attend(q, k, v, 16), F.scaled_dot_product_attention(q, k, v)) < 1e-6, "equation (1), in parts"
for factor, size in ((1, 10), (1e4, 16), (-1e4, 16)):  # a shorter last part; logits far above and far below 0
    assert gap(stream_attend(factor * q, k, v, size), F.scaled_dot_product_attention(factor * q, k, v)) < 1e-6, f"wrong for {size} keys at a time, logits times {factor:g}"
assert max(kept(partial(stream_attend, q, k, v, 4), k, v), default=0) <= v.nbytes / 8, "all logits at once: a tensor of that size was made"
print("in parts as in one, for large logits too, and without the whole matrix")

# %% findings
memory = measured["attention, map kept", last][1] / measured["attention, fused", last][1]
before, moved, even = found[0].max(), shuffled[0][top["word before"]], found[2].mean() * real.sum(1).double().mean()
text_found = f"""
* One `Transformer` of {sum(p.numel() for p in encoder.parameters()):,} parameters is {len(family)} architectures. Its block is PyTorch's layer, and its attention MiniLM's, to rounding.
* FLOPs and memory can be counted before the run: the largest error of {len(measured)} measurements is {worst:.1%}.
* At {last:,} tokens of width {dim}, keeping the maps takes {memory:.0f} times the memory of the fused kernel, for the same FLOPs.
* In a layer of MiniLM the quadratic part equals the rest at **{star:,}** tokens, {star / 512:.1f} times as many as it reads; your guess was {guess:,.0f}.
* One head gives {before:.0%} of its weight to the word before, and {moved:.0%} when the words are shuffled: it reads positions, not meaning. All heads together give **{found[2].mean():.0%}** to `[CLS]`, {even:.0f} times an even share."""
display(Markdown(text_found))
