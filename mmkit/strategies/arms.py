"""The arms: how the encoders start, and what is trained on the pairs, in which order."""

from dataclasses import dataclass

from mmkit.errors import unknown

EVERYTHING = ("image", "text", "fusion", "head")


@dataclass(frozen=True)
class Stage:
    """Part of the training on pairs: which parts of the model it trains, for which share of the epochs, at which multiple of the rate.

    mined: its batches hold each other's hardest negatives, by the model as the stage finds it (retrieval)."""

    name: str
    parts: tuple[str, ...] = EVERYTHING
    share: float = 1.0
    pace: float = 1.0
    mined: bool = False

    @property
    def locked(self) -> bool:
        """Whether both encoders stay as they are."""
        return not {"image", "text"} & set(self.parts)


@dataclass(frozen=True)
class Arm:
    """One strategy. start: `random` or `pretrained` encoders (by self-supervision on the unpaired pools, its cost counted, or real ones).

    random: encoders that start random all the same. mix: the weights end this share of the way from the end of the first stage to the end of the last.
    own_losses: each modality's own loss is added: `added`, `blended` (weighted by how each overfits) or `modulated` (to measure it only). single: only this modality is trained and used. blank: this modality is always
    shown empty. shuffled: the training pairs are dealt out anew."""

    name: str
    what: str
    start: str
    stages: tuple[Stage, ...] = (Stage("joint"),)
    random: tuple[str, ...] = ()
    mix: float | None = None
    own_losses: str = ""
    single: str | None = None
    blank: str | None = None
    shuffled: bool = False


TOWER = {"L": "locked", "U": "pretrained", "u": "random"}  # LiT's letters, the image tower's first; UU is `holistic`, LL `frozen`, uu `scratch`


def _towers(image: str, text: str) -> Arm:
    """An arm whose two encoders are treated differently."""
    letters = {"image": image, "text": text}
    parts = tuple(part for part in EVERYTHING if letters.get(part) != "L")
    what = f"image encoder {TOWER[image]}, text encoder {TOWER[text]} (LiT's grid, arXiv 2111.07991)"
    return Arm(f"lit_{image}{text}", what, "pretrained", (Stage("joint", parts),), random=tuple(side for side, letter in letters.items() if letter == "u"))


ARMS = {
    arm.name: arm
    for arm in (
        Arm("scratch", "random encoders, everything trained on the pairs", "random"),
        Arm("holistic", "pretrained encoders, everything trained on the pairs at once", "pretrained"),
        Arm("frozen", "pretrained encoders locked, fusion and head trained (like LiT, arXiv 2111.07991)", "pretrained", (Stage("fusion", ("fusion", "head")),)),
        Arm("component", "encoders pretrained by the run itself, then fusion and head, then everything", "pretrained",
            (Stage("fusion", ("fusion", "head"), 0.3), Stage("joint", EVERYTHING, 0.7))),
        Arm("lp_ft", "pretrained encoders, the last layer first, then everything (arXiv 2202.10054)", "pretrained",
            (Stage("head", ("head",), 0.3), Stage("joint", EVERYTHING, 0.7))),
        Arm("frozen_then_all", "as frozen, then everything for the last fifth of the epochs, at a tenth of the rate", "pretrained",
            (Stage("fusion", ("fusion", "head"), 0.8), Stage("joint", EVERYTHING, 0.2, 0.1))),
        Arm("wise_ft", "as component, then halfway back to where its encoders were locked (arXiv 2109.01903)", "pretrained",
            (Stage("fusion", ("fusion", "head"), 0.3), Stage("joint", EVERYTHING, 0.7)), mix=0.5),
        Arm("hard_negatives", "as scratch, the second half of the epochs on batches of each other's hardest negatives", "random",
            (Stage("joint", share=0.5), Stage("mined", share=0.5, mined=True))),
        *(_towers(image, text) for image, text in ("Lu", "LU", "UL", "uL", "Uu", "uU")),
        Arm("joint_plus_unimodal", "as scratch, with each modality's own loss beside the joint one", "random", own_losses="added"),
        Arm("grad_blend", "as joint_plus_unimodal, each loss weighted by its gain over its overfitting, measured first (arXiv 1905.12681)", "random", own_losses="blended"),
        Arm("ogm_ge", "as scratch, the leading modality's gradients held back (arXiv 2203.15332)", "random", own_losses="modulated"),
        Arm("image_only", "control: the image alone", "random", single="image"),
        Arm("text_only", "control: the text alone", "random", single="text"),
        Arm("frozen_image", "control: as frozen, with every text empty", "pretrained", (Stage("fusion", ("fusion", "head")),), blank="text"),
        Arm("frozen_text", "control: as frozen, with every image empty", "pretrained", (Stage("fusion", ("fusion", "head")),), blank="image"),
        Arm("shuffled_pairs", "control: as scratch, on pairs dealt out anew", "random", shuffled=True),
        Arm("blank_image", "control: as scratch, with every image empty", "random", blank="image"),
        Arm("blank_text", "control: as scratch, with every text empty", "random", blank="text"),
    )
}
DERIVED = {
    "best_single": "control: the better of image_only and text_only, by validation",
    "ensemble_single": "control: the mean of image_only's and text_only's log-probabilities",
}


def arm(name: str) -> Arm:
    if name not in ARMS:
        raise unknown("arm", name, [*ARMS, *DERIVED])
    return ARMS[name]
