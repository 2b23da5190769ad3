"""What the house lets in: any modality, any way of training, a student's own; each as the lines of a notebook."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

from conftest import ROOT
from mmkit.data import Writer, load
from mmkit.data.dataset import Dataset
from mmkit.data.prepared import read_card
from mmkit.errors import MmkitError
from mmkit.models import Encoded, Multimodal
from mmkit.models.adapters import add_adalora, add_bottlenecks, add_lora, merge
from mmkit.pretraining import Part
from mmkit.strategies import ARMS, DERIVED, Budget, Encoders, Stage, Strategy, fit
from mmkit.strategies.fit import _begin as begin
from mmkit.strategies.fit import _loaders as loaders
from mmkit.tasks import Answering
from mmkit.training import EarlyStopping, Group, RankAllocation, Unfreeze, adversarial, distilled, layerwise

pytestmark = pytest.mark.slow
SMALL = {"train": 96, "val": 32, "test": 32, "ood": 32, "pool": 64}
OPTIONS = {"budget": Budget(pairs=64, epochs=4), "seed": 0, "encoders": Encoders(epochs=1), "lr": 3e-3}


@pytest.fixture(scope="module")
def task():
    return Answering(load("scenes", **SMALL))


# --- a third modality ---


class Tones(nn.Module):
    """A small encoder of waveforms (B, S) int16."""

    def __init__(self, dim: int = 32):
        super().__init__()
        self.dim = self.summary_dim = dim
        self.body = nn.Sequential(nn.Conv1d(1, 16, 16, stride=8), nn.ReLU(), nn.Conv1d(16, dim, 8, stride=4), nn.ReLU())

    def forward(self, waves):
        tokens = self.body(waves.float().div(32768)[:, None]).transpose(1, 2)
        return Encoded(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool), tokens.mean(1))


class Loudness(nn.Module):
    """A pretext task: how loud is it?"""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.summary_dim, 1)

    def forward(self, waves, generator):
        loudness = waves.float().div(32768).square().mean(1, keepdim=True)
        return nn.functional.mse_loss(self.head(self.encoder(waves).summary), loudness)


AUDIO = Encoders(epochs=1, others={"audio": Part(Tones, Loudness)})


@pytest.fixture(scope="module")
def singing(tmp_path_factory):
    """Scenes with a tone whose pitch is the answer; some items have no sound."""
    scenes = load("scenes", **SMALL)
    writer = Writer(tmp_path_factory.mktemp("sets") / "singing")
    answers = scenes.labels(range(len(scenes)), "label_answer").clamp(min=0).numpy()
    time = np.arange(800) / 800
    waves = (20000 * np.sin(2 * np.pi * time * (40 + 40 * answers[:, None]))).astype(np.int16)
    items = scenes.items.copy()
    pairs = ~items["split"].str.startswith("pool_") & (np.arange(len(items)) % 7 > 0)
    writer.images(scenes.images[:])
    items["audio"] = -1
    items.loc[pairs, "audio"] = writer.array("audio", waves[pairs.to_numpy()], rate=8000)
    writer.items(items)
    writer.texts(scenes.texts)
    writer.finish(
        {key: scenes.card[key] for key in ("title", "task", "licence", "terms", "citation", "mmkit")}
        | {
            "name": "singing",
            "recipe": None,
            "knobs": {},
            "sources": [],
        }
    )
    return Dataset(writer.target, read_card(writer.target))


@pytest.mark.parametrize("name", [*ARMS, *DERIVED])
def test_every_arm_trains_a_third_modality_or_says_why_not(name, singing):
    task = Answering(singing, modalities=("image", "text", "audio"))
    try:
        run = fit(name, task, **OPTIONS | {"encoders": AUDIO, "budget": Budget(64, 1)})
    except MmkitError as error:
        assert name in str(error) and "retrieval" in str(error)
        return
    assert 0 <= run.scores["accuracy"].value <= 1 and run.cost.flops > 0


def test_a_model_hears_the_third_modality_and_text_alone_works(singing):
    options = OPTIONS | {"encoders": AUDIO, "budget": Budget(64, 60)}
    heard = fit("audio_only", Answering(singing, modalities=("text", "audio")), **options)
    assert heard.scores["accuracy"].value > 0.6  # four answers; one item in seven is silent
    with pytest.raises(MmkitError, match="has no audio: leave it out"):
        fit("scratch", Answering(singing, modalities=("audio",)), **options)
    text = fit("scratch", Answering(singing, modalities=("text",)), **OPTIONS)
    assert text.model.modalities == ("text",) and not hasattr(text.model, "image")


# --- ways of training ---


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_lora_trains_the_adapters_alone_and_merges_to_the_same_outputs(task):
    lora = Strategy(
        "lora",
        "pretrained encoders, low-rank adapters in the text encoder, new fusion and head",
        "pretrained",
        (Stage("joint", (Group("*lora_*"), Group("fusion.*"), Group("head.*"))),),
        prepare=lambda fitting: add_lora(fitting.model.text, rank=4),
    )
    run = fit(lora, task, **OPTIONS)
    names = [name for name, _ in run.model.named_parameters() if "lora_" in name]
    assert names and all(name.startswith("text.") for name in names)
    batch = task.loader()(task.rows("test"))
    before = run.model(batch.inputs)
    louder = copy.deepcopy(run.model)
    for name, parameter in louder.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(1000)
    assert not torch.allclose(louder.eval()(batch.inputs), before)  # heard in evaluation mode
    merge(run.model)
    assert not [name for name in run.model.state_dict() if "lora" in name]
    assert torch.allclose(run.model(batch.inputs), before, atol=1e-5)


def test_adalora_gives_ranks_away(task):
    def prepare(fitting):
        fitting.tuner = add_adalora(fitting.model.text, steps=60, rank=2, start=6)

    strategy = Strategy(
        "adalora",
        "ranks where they are used",
        stages=(
            Stage(
                "joint",
                (Group("*lora_*"), Group("fusion.*"), Group("head.*")),
                hooks=lambda fitting: [RankAllocation(fitting.tuner)],
                keep_best=False,
            ),
        ),
        prepare=prepare,
    )
    run = fit(strategy, task, **OPTIONS | {"budget": Budget(64, 60)})
    kept = [int((value != 0).sum()) for name, value in run.model.named_parameters() if "lora_E" in name]
    assert kept and sum(kept) == 2 * len(kept)


def test_bottleneck_adapters_change_nothing_until_they_are_trained(task):
    def prepare(fitting):
        batch = fitting.loader(fitting.rows)
        before = fitting.model.eval()(batch.inputs)
        add_bottlenecks(fitting.model.text, width=4)
        assert torch.equal(fitting.model.eval()(batch.inputs), before)

    groups = (Group("*adapter_*"), Group("fusion.*"), Group("head.*"))
    run = fit(Strategy("bottleneck", "adapters", stages=(Stage("joint", groups),), prepare=prepare), task, **OPTIONS)
    assert [name for name, _ in run.model.text.named_parameters() if "adapter_up" in name]


@pytest.mark.parametrize(
    ("add", "options"), [(add_lora, {"targets": ("qury",)}), (add_bottlenecks, {"targets": ("owt",)})]
)
def test_an_unknown_adapter_target_is_answered_with_the_nearest(add, options, task):
    strategy = Strategy("x", "x", prepare=lambda fitting: add(fitting.model.text, **options))
    with pytest.raises(MmkitError, match="unknown linear layer .* did you mean '(query|out)'"):
        fit(strategy, task, **OPTIONS)


def test_an_adapter_needs_a_linear_layer():
    with pytest.raises(MmkitError, match="has no linear layer"):
        add_lora(nn.Conv2d(3, 3, 1))


def test_distillation_mutual_and_adversarial_training_are_objectives(task):
    teacher = fit("scratch", task, **OPTIONS).model
    kept = weights(teacher)
    strategies = [
        Strategy("student", "distilled", stages=(Stage("joint", wrap=lambda own, fitting: distilled(own, teacher)),)),
        Strategy(
            "fgsm",
            "attacked",
            stages=(Stage("joint", wrap=lambda own, _: adversarial(own, modality="image", size=4.0)),),
        ),
        Strategy("early", "stopped early", stages=(Stage("joint", hooks=lambda _: [EarlyStopping(1)], lr=1e-6),)),
        Strategy(
            "thawing",
            "from the top",
            stages=(Stage("joint", hooks=lambda _: [Unfreeze(["head.*", "fusion.*", "*"], every=1)]),),
        ),
        Strategy("layerwise", "slower below", stages=(Stage("joint", layerwise(["head.*", "fusion.*", "*"], 0.5)),)),
        Strategy("bf16", "mixed precision", stages=(Stage("joint", precision="bfloat16"),)),
    ]
    plain = fit("scratch", task, **OPTIONS)
    for strategy in strategies:
        run = fit(strategy, task, **OPTIONS)
        assert run.arm == strategy.name
        differs = any(
            not torch.equal(a, b) for a, b in zip(run.model.state_dict().values(), plain.model.state_dict().values())
        )
        assert differs, strategy.name
        if strategy.name == "early":
            assert run.cost.phases["joint"].steps < 4
    assert all(torch.equal(a, b) for a, b in zip(kept.values(), teacher.state_dict().values()))


def test_features_of_frozen_encoders_are_used_until_the_encoders_have_learnt(task):
    stages = (Stage("new", (Group("fusion.*"), Group("head.*"))), Stage("joint"), Stage("head", (Group("head.*"),)))
    strategy = Strategy("three", "frozen, joint, head again", "pretrained", stages)
    real = Encoders(image="efficientnet_lite0", text="minilm", size=96)
    splits = {"test": task.rows("test")[:4]}
    fitting = begin(strategy, task, real, Budget(8, 1), splits, seed=0, lr=1e-3, batch=8)
    fitting.validation = fitting.validation[:4]
    shown = {
        name: loader.views["image"].features is not None for name, loader in loaders(strategy, fitting, splits).items()
    }
    assert shown == {"new": True, "joint": False, "head": False}


def test_a_compiled_stage_gives_the_same_run(task, monkeypatch):
    traced = []

    def compiled(objective):
        traced.append(objective)
        return compile_(objective, backend="eager")  # traced as ever; building machine code takes a minute

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", compiled)
    run = fit(Strategy("fast", "compiled", stages=(Stage("joint", compiled=True),)), task, **OPTIONS)
    plain = fit("scratch", task, **OPTIONS)
    assert len(traced) == 1 and run.cost.flops == plain.cost.flops
    losses = [entry["loss"] for entry in plain.history]
    assert [entry["loss"] for entry in run.history] == pytest.approx(losses, abs=1e-4)


def test_a_teacher_is_trained_on_the_same_pairs_by_the_fitting(task):
    def wrap(objective, fitting):
        teacher = fitting.fit("scratch")
        assert teacher.seed == fitting.seed and teacher.budget.pairs == fitting.budget.pairs
        return distilled(objective, teacher.model)

    run = fit(Strategy("student", "taught", stages=(Stage("joint", wrap=wrap),)), task, **OPTIONS)
    assert run.scores


def test_a_students_own_strategy_hook_and_augmentation_are_a_few_lines(task):
    seen = []

    class Watch:
        def after_step(self, state):
            seen.append(state.step)

    def noise(batch, generator):
        pixels = batch.inputs["image"].float()
        moved = pixels + 20 * torch.randn(pixels.shape, generator=generator)
        return batch.with_input("image", moved.clamp(0, 255).to(torch.uint8))

    strategy = Strategy(
        "mine", "noise on every picture", stages=(Stage("joint", hooks=lambda _: [Watch()]),), transforms=(noise,)
    )
    run = fit(strategy, task, **OPTIONS)
    assert seen == list(range(4)) and run.settings["lr_from"] == "given"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Strategy("x", "x", stages=(Stage("joint", (Group("imge.*"),)),)),
            "unknown pattern of parameters 'imge.*': did you mean 'image.*'",
        ),
        (
            lambda: Strategy("x", "x", modalities=("sound",)),
            "'x' is not defined for answering: unknown modality 'sound': there are image, text",
        ),
        (
            lambda: Strategy("x", "x", blank=("txt",)),
            "not defined for answering: unknown modality 'txt': did you mean 'text'",
        ),
        (
            lambda: Strategy("x", "x", stages=(Stage("joint", hooks=lambda _: [object()]),)),
            "has none of the methods before_step",
        ),
        (lambda: Strategy("x", "x", start="pretraned"), "unknown start of 'x' 'pretraned': did you mean 'pretrained'"),
        (lambda: Strategy("x", "x", stages=(Stage("a"), Stage("a"))), "stages with names of their own"),
        (lambda: Stage("joint", precision="bf16"), "unknown precision 'bf16'"),
        (
            lambda: Strategy(
                "x", "x", stages=(Stage("joint", wrap=lambda o, f: adversarial(o, modality="sound", size=1)),)
            ),
            "unknown modality to attack 'sound'",
        ),
    ],
)
def test_a_mistake_in_a_strategy_is_one_line_with_the_remedy(make, message, task):
    with pytest.raises(MmkitError) as caught:
        fit(make(), task, **OPTIONS)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_readmes_strategy_runs_as_it_stands(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (block,) = [code for code in blocks if "add_lora" in code]
    exec(block, {})
    assert 0 < float(capsys.readouterr().out.split()[0]) <= 1


def test_a_modality_cannot_take_a_name_that_modules_use(task):
    with pytest.raises(MmkitError, match="'forward' cannot name a modality"):
        Multimodal({"forward": nn.Identity()}, nn.Identity(), nn.Identity())
