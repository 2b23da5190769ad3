# What separates a Transformer, a ViT and a Perceiver, and what does each cost as the input grows?
# The code of 02_attention_and_encoders.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
from functools import partial

import torch
from IPython.display import Markdown, display
from torch import nn
from torch.nn import functional as F

import mmkit
from mmkit.models import TextTransformer, ViT, WordTokenizer, pretrained
from mmkit.models.vision import scaled
from mmkit.teach import plots
from mmkit.training import flops_of, seeded, stream

# %% parameters
data: str = "scenes"  # data set with captions: a recipe or one of your own
caption: str = "a brown dog runs after a red ball on the beach ."  # sentence whose attention maps are drawn
sentences: int = 64  # captions over which attention maps are averaged
dim: int = 64  # width D of a token
heads: int = 4  # attention heads H, a divisor of dim
latents: int = 8  # learned queries M of the Perceiver
lengths: list[int] = [64, 128, 256, 512, 1024, 2048]  # tokens T at which cost is measured
seed: int = 0  # decides first weights and random inputs

# %% guess
guess = 500

# %% guess-check
assert isinstance(guess, int | float) and guess > 0, f"a number of tokens is positive, got {guess!r}"
print(f"noted: {guess:,.0f} tokens")

# %% attention
def attention(q, k, v, mask=None):
    """Equation (1). q (B, H, T, d), k and v (B, H, S, d), mask True where a query may see a key -> values (B, H, T, d), weights (B, H, T, S)."""
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
class Attention(nn.Module):
    """Equation (2): x (B, T, D) asks, context (B, S, D) answers; the mask broadcasts to (B, H, T, S)."""

    def __init__(self, dim, heads, fused=False):
        super().__init__()
        self.heads, self.fused, self.map = heads, fused, None
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x, context, mask=None):
        parts = self.query(x), self.key(context), self.value(context)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed, self.map = (F.scaled_dot_product_attention(q, k, v, attn_mask=mask), None) if self.fused else attention(q, k, v, mask)
        return self.out(mixed.transpose(1, 2).flatten(2))

# %% block
class Block(nn.Module):
    """Equation (3); `pre=False` normalises after each sum, as BERT does. A context comes normalised."""

    def __init__(self, dim, heads, expand=2, pre=True, fused=False):
        super().__init__()
        self.pre, self.attention = pre, Attention(dim, heads, fused)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feed = nn.Sequential(nn.Linear(dim, expand * dim), nn.GELU(), nn.Linear(expand * dim, dim))

    def forward(self, x, context=None, mask=None):
        asks = self.norm1(x) if self.pre else x
        x = x + self.attention(asks, asks if context is None else context, mask)
        return x + self.feed(self.norm2(x)) if self.pre else self.norm2((y := self.norm1(x)) + self.feed(y))

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
order, real = torch.randperm(10, generator=stream(seed, "order")), torch.arange(10) < 6
for name, change in {
    "order, without positions": gap(block(x[:, order]), block(x)[:, order]),
    "order, with positions": gap(block(x[:, order] + place), block(x + place)[:, order]),
    "padding, without a mask": gap(block(x)[:, :6], block(other)[:, :6]),
    "padding, under a padding mask": gap(block(x, mask=real)[:, :6], block(other, mask=real)[:, :6]),
    "the future, under a causal mask": gap(block(x, mask=causal)[:, :6], block(other, mask=causal)[:, :6]),
}.items():
    print(f"is it seen? {name:32} {'yes' if change > 1e-6 else 'no'}")

# %% encoder
class Encoder(nn.Module):
    """Blocks over x (B, T, D); the first reads the context (B, S, D), if any. real, context_real: (B, T), (B, S) True where a token is no padding."""

    def __init__(self, dim, heads, layers):
        super().__init__()
        self.blocks, self.norm = nn.ModuleList(Block(dim, heads) for _ in range(layers)), nn.LayerNorm(dim)

    def forward(self, x, context=None, real=None, context_real=None):
        for block in self.blocks:
            visible = real if context is None else context_real
            x, context = block(x, context, None if visible is None else visible[:, None, None]), None
        return self.norm(x)

# %% tokens
dataset = mmkit.load(data)
rows = dataset.rows("test")[:4]
texts, owner = dataset.texts_of(rows)
texts = [texts[list(owner).index(item)] for item in range(len(rows))]  # the first caption of each image
ids = WordTokenizer(texts)(texts)
vit, text = seeded(seed, "image", ViT, dim=dim, heads=heads), seeded(seed, "text", TextTransformer, int(ids.max()) + 1, dim=dim, heads=heads)
patches = vit.patches(scaled(dataset.pixels(rows), vit.size)).flatten(2).transpose(1, 2) + vit.positions
words, real = text.words(ids) + text.positions[:, : ids.shape[1]], ids != 0
kind, asked = torch.randn(2, dim, generator=stream(seed, "kind")), torch.randn(1, latents, dim, generator=stream(seed, "latents"))
both, both_real = torch.cat([words + kind[0], patches + kind[1]], 1), F.pad(real, (0, patches.shape[1]), value=True)

# %% family
encoder = seeded(seed, "encoder", Encoder, dim, heads, 2)
family = {
    "Transformer": (words, None, real, None),
    "ViT": (patches, None, None, None),
    "unified": (both, None, both_real, None),
    "cross-attention": (words, encoder.norm(patches), real, None),  # a context comes normalised
    "Perceiver": (asked.expand(len(ids), -1, -1), encoder.norm(both), None, both_real),
}
for name, (x, context, *masks) in family.items():
    print(f"{name:15} {x.shape[1]:3} queries x {(x if context is None else context).shape[1]:3} keys -> {tuple(encoder(x, context, *masks).shape)}")

# %% oracle
def borrowed(body):
    """Our encoder with the weights of an `nn.TransformerEncoder`; `load_state_dict` refuses a missing or a left-over one."""
    state, encoder = {}, Encoder(dim, heads, len(body.layers))
    for name, value in body.state_dict().items():
        name = name.replace("layers", "blocks").replace("self_attn", "attention").replace("out_proj", "out").replace("linear1", "feed.0").replace("linear2", "feed.2")
        names = [name.replace("in_proj_", part) for part in ("query.", "key.", "value.")] if "in_proj" in name else [name]
        state |= dict(zip(names, value.chunk(len(names))))
    encoder.load_state_dict(state)
    return encoder.double()


for name, body, x, mask in (("ViT", vit.body, patches.double(), None), ("TextTransformer", text.body, words.double(), real)):
    mine, theirs = borrowed(body)(x, real=mask), body.double()(x, src_key_padding_mask=None if mask is None else ~mask)
    print(f"{name:15} our {tuple(mine.shape)} tokens equal PyTorch's to 1e-6: {gap(mine, theirs) < 1e-6}")

# %% counted
def counted(T, D=dim, H=heads, M=latents, f=2):
    """FLOPs of a forward pass and floats kept for the backward pass, by layer: equations (5) and (6) and their relatives."""
    products, maps, kept = 4 * D * T * T, (8 + 4 * f) * D * D * T, ((8 + 2 * f) * D + 4) * T
    return {
        "attention, map kept": (maps + products, kept + H * T * T),
        "attention, fused": (maps + products, kept + H * T),
        "Perceiver": (4 * D * D * T + 4 * M * D * T + (4 + 4 * f) * D * D * M, 3 * D * T + H * M * T + ((5 + 2 * f) * D + 4) * M),
        "GRU": (12 * D * D * T, 8 * D * T),
        "CNN": (6 * D * D * T, D * T),
    }


full, fused, reader = (seeded(seed, "layer", Block, dim, heads, fused=fused) for fused in (False, True, False))
gru, conv = seeded(seed, "gru", nn.GRU, dim, dim, batch_first=True), seeded(seed, "conv", nn.Conv1d, dim, dim, 3, padding=1)
calls = (full, fused, lambda x: reader(asked, x), lambda x: gru(x)[0], lambda x: conv(x.transpose(1, 2)).transpose(1, 2))
layers = dict(zip(counted(1), zip((full, fused, reader, gru, conv), calls)))

# %% measure
def kept(call, *left_out):
    """Bytes of each storage that autograd keeps for the backward pass of `call()`, those of the tensors left out not counted."""
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
    share = flops_of(partial(attention, q, q, q)) / flops_of(partial(Block(width, many, expand).to("meta"), x))
    print(f"{T:5,} tokens: the two products are {share:.0%} of the layer's FLOPs")
print(f"equal FLOPs by (5): {star:,} tokens; your guess: {guess:,.0f}; equal memory by (6): {((8 + 2 * expand) * width + 4) // many:,} tokens")

# %% minilm
minilm = pretrained("minilm").double().requires_grad_(False)
blocks = [Block(width, many, expand, pre=False) for _ in minilm.body.encoder.layer]
for block, layer in zip(blocks, minilm.body.encoder.layer):
    own, said, told = block.attention, layer.attention.self, layer.attention.output
    own.query, own.key, own.value, own.out, block.norm1 = said.query, said.key, said.value, told.dense, told.LayerNorm
    block.feed, block.norm2 = nn.Sequential(layer.intermediate, layer.output.dense), layer.output.LayerNorm


def read(texts):
    """Our blocks with MiniLM's weights: tokens (B, T, D), attention maps (B, layers, H, T, T), which tokens are real (B, T)."""
    x, real = minilm.body.embeddings(input_ids=(ids := minilm.tokenizer(texts))), ids != 0
    for block in blocks:
        x = block(x, mask=real[:, None, None])
    return x, torch.stack([block.attention.map for block in blocks], 1), real

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
print(f"our blocks give MiniLM's tokens to 1e-6: {gap(x[real], minilm(minilm.tokenizer(texts)).tokens[real]) < 1e-6}")
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
    """q (B, T, D), k and v (B, S, D), real (B, S) bool -> (B, T, D): heads split, mixed by equation (1) over real keys, joined; zeros where no key is real."""
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
    for start in range(0, len(k), size):
        logits = q @ k[start : start + size].T / q.shape[-1] ** 0.5
        higher = torch.maximum(top, logits.amax(1, keepdim=True))
        weights, shrink = (logits - higher).exp(), (top - higher).exp()
        total, mixed, top = total * shrink + weights.sum(1, keepdim=True), mixed * shrink + weights @ v[start : start + size], higher
    return mixed / total

# %% stream-attend-check
q, k, v = (torch.rand(length, 8, dtype=torch.float64, generator=stream(seed, name)).requires_grad_() for length, name in ((6, "q"), (64, "k"), (64, "v")))
assert gap(stream_attend(q, k, v, 16), F.scaled_dot_product_attention(q, k, v)) < 1e-6, "equation (1), in parts"
for factor, size in ((1, 10), (1e4, 16), (-1e4, 16)):  # a shorter last part; logits far above and far below 0
    assert gap(stream_attend(factor * q, k, v, size), F.scaled_dot_product_attention(factor * q, k, v)) < 1e-6, f"wrong for {size} keys at a time, logits times {factor:g}"
assert max(kept(partial(stream_attend, q, k, v, 4), k, v), default=0) <= v.nbytes / 8, "all logits at once: a tensor of that size was made"
print("in parts as in one, for large logits too, and without the whole matrix")

# %% findings
display(Markdown("\n".join([
    f"* One encoder of {sum(p.numel() for p in encoder.parameters()):,} parameters is {len(family)} architectures; given their weights, our blocks reproduce PyTorch's Transformer and MiniLM to 1e-6.",
    f"* FLOPs and memory can be counted before the run: the largest error of {len(measured)} measurements is {worst:.1%}.",
    f"* At {last:,} tokens of width {dim}, keeping the maps takes {measured['attention, map kept', last][1] / measured['attention, fused', last][1]:.0f} times the memory of the fused kernel, for the same FLOPs.",
    f"* In a layer of MiniLM the quadratic part equals the rest at **{star:,}** tokens, {star / 512:.1f} times as many as it reads; your guess was {guess:,.0f}.",
    f"* One head gives {found[0].max():.0%} of its weight to the word before, and {shuffled[0][top['word before']]:.0%} when the words are shuffled: it reads positions, not meaning. All heads together give **{found[2].mean():.0%}** to `[CLS]`, {found[2].mean() * real.sum(1).double().mean():.0f} times an even share.",
])))
