"""The table of arms: strategies that the kit compares, by name."""

from mmkit.data import Dataset
from mmkit.errors import unknown
from mmkit.strategies.balance import add_unimodal_heads, blended, modulated, unimodal_losses
from mmkit.strategies.encoders import Encoders
from mmkit.strategies.ensembles import Combination, averaged, better
from mmkit.strategies.run import interpolate
from mmkit.strategies.strategy import Fitting, Stage, Strategy, single
from mmkit.training import Group, Loader, stream

NEW = (Group("fusion.*"), Group("head.*"))  # what only pairs can train
HEAD = (Group("head.*"),)

# The stage of the head comes on top, so that every arm that trains everything does so in as many passes.
FUSION_THEN_ALL = (Stage("fusion", NEW, 0.3), Stage("joint"))
HEAD_THEN_ALL = (Stage("head", HEAD, 0.3), Stage("joint"))
TOWER = {
    "L": "locked",
    "U": "pretrained",
    "u": "random",
}  # LiT's letters, the image tower's first; UU is `holistic`, LL `frozen`, uu `scratch`


def halfway(model, ends) -> None:
    """The weights halfway from the end of the first stage to the end of the last."""
    model.load_state_dict(interpolate(ends[0], ends[-1], 0.5))


def shuffled(loader: Loader, fitting: Fitting) -> Loader:
    """Training pairs are dealt out anew."""
    return loader.shuffled(fitting.rows, stream(fitting.seed, "shuffle"))


def hardest_negatives(fitting: Fitting):
    """Batches of each other's hardest negatives, by the model as the stage finds it."""
    return fitting.task.mined(fitting)


def no_loss_alone(task) -> str | None:
    return None if task.alone else "a modality alone has no loss there"


def cannot_mine(task) -> str | None:
    return None if task.can_mine else "negatives are mined where a batch is ranked, in retrieval"


def towers(image: str, text: str) -> Strategy:
    """An arm whose two encoders are treated differently (LiT's grid)."""
    letters = {"image": image, "text": text}
    what = f"image encoder {TOWER[image]}, text encoder {TOWER[text]} (LiT's grid, arXiv 2111.07991)"
    start = {modality: "random" if letter == "u" else "pretrained" for modality, letter in letters.items()}
    trained = tuple(Group(f"{modality}.*") for modality, letter in letters.items() if letter != "L")
    stages = (Stage("joint", (*trained, *NEW)),)
    return Strategy(f"lit_{image}{text}", what, start, stages, modalities=("image", "text"))


TABLE = (
    Strategy("scratch", "random encoders, everything trained on the pairs"),
    Strategy("holistic", "pretrained encoders, everything trained on the pairs at once", "pretrained"),
    Strategy(
        "frozen",
        "pretrained encoders locked, fusion and head trained (like LiT, arXiv 2111.07991)",
        "pretrained",
        (Stage("fusion", NEW),),
    ),
    Strategy(
        "component",
        "encoders pretrained by the run itself, then fusion and head, then everything",
        "pretrained",
        FUSION_THEN_ALL,
        pretrains=True,
    ),
    Strategy(
        "lp_ft",
        "pretrained encoders, the last layer first, then everything (arXiv 2202.10054)",
        "pretrained",
        HEAD_THEN_ALL,
    ),
    Strategy(
        "frozen_then_all",
        "as frozen, then everything for the last fifth of the epochs, at a tenth of the rate",
        "pretrained",
        (Stage("fusion", NEW, 0.8), Stage("joint", share=0.2, lr=0.1)),
    ),
    Strategy(
        "wise_ft",
        "as component, then halfway back to where its encoders were locked (arXiv 2109.01903)",
        "pretrained",
        FUSION_THEN_ALL,
        finish=halfway,
    ),
    Strategy(
        "hard_negatives",
        "as scratch, the second half of the epochs on batches of each other's hardest negatives",
        stages=(Stage("joint", share=0.5), Stage("mined", share=0.5, order=hardest_negatives)),
        undefined=cannot_mine,
    ),
    *(towers(*letters) for letters in ("Lu", "LU", "UL", "uL", "Uu", "uU")),
    Strategy(
        "joint_plus_unimodal",
        "as scratch, with each modality's own loss beside the joint one",
        stages=(Stage("joint", wrap=unimodal_losses),),
        prepare=add_unimodal_heads,
        undefined=no_loss_alone,
    ),
    Strategy(
        "grad_blend",
        "as joint_plus_unimodal, each loss weighted by its measured gain over its overfitting (arXiv 1905.12681)",
        stages=(Stage("joint", wrap=unimodal_losses),),
        prepare=blended,
        undefined=no_loss_alone,
    ),
    Strategy(
        "ogm_ge",
        "as scratch, the leading modality's gradients held back (arXiv 2203.15332)",
        stages=(Stage("joint", wrap=modulated, hooks=lambda fitting: [fitting.objective]),),
        prepare=add_unimodal_heads,
        undefined=no_loss_alone,
    ),
    single("image"),
    single("text"),
    Strategy(
        "frozen_image",
        "control: as frozen, with every text empty",
        "pretrained",
        (Stage("fusion", NEW),),
        blank=("text",),
    ),
    Strategy(
        "frozen_text",
        "control: as frozen, with every image empty",
        "pretrained",
        (Stage("fusion", NEW),),
        blank=("image",),
    ),
    Strategy("shuffled_pairs", "control: as scratch, on pairs dealt out anew", show=shuffled),
    Strategy("blank_image", "control: as scratch, with every image empty", blank=("image",)),
    Strategy("blank_text", "control: as scratch, with every text empty", blank=("text",)),
)
ARMS = {strategy.name: strategy for strategy in TABLE}
BETTER = Combination("best_single", "control: the better of image_only and text_only, by validation", better)
MEAN = Combination("ensemble_single", "control: the mean of image_only's and text_only's log-probabilities", averaged)
DERIVED = {combination.name: combination for combination in (BETTER, MEAN)}


def arm(name: str) -> Strategy | Combination:
    """An arm of the table by name. Raises MmkitError for a name that is not there, with the nearest one."""
    table = ARMS | DERIVED
    if name not in table and name.endswith("_only"):
        return single(name.removesuffix("_only"))
    if name not in table:
        raise unknown("arm", name, table)
    return table[name]


def suited(dataset: Dataset, name: str) -> Encoders:
    """The encoders that the notebooks use: small ones for small images; for photos (96 pixels and more) the real ones
    wherever an arm starts from given weights, and small ones on 64 pixels where it trains its own. Encoders that are
    fine-tuned see smaller photos, for time."""
    if dataset.images.shape[1] < 96:
        return Encoders()
    strategy = ARMS.get(name)
    if strategy and strategy.start == "pretrained" and not strategy.pretrains:
        frozen = name == "frozen"
        return Encoders(image="efficientnet_lite0", text="minilm", size=192 if frozen else 128, flip=frozen)
    return Encoders(size=64)
