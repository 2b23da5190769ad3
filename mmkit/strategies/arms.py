"""The arms: how the encoders start, and what is trained on the pairs, in which order."""

from dataclasses import dataclass

from mmkit.errors import unknown

EVERYTHING = ("image", "text", "fusion", "head")


@dataclass(frozen=True)
class Stage:
    """Part of the training on pairs: which parts of the model it trains, for which share of the epochs."""

    name: str
    parts: tuple[str, ...] = EVERYTHING
    share: float = 1.0

    @property
    def locked(self) -> bool:
        """Whether both encoders stay as they are."""
        return not {"image", "text"} & set(self.parts)


@dataclass(frozen=True)
class Arm:
    """One strategy. start: `random` or `pretrained` encoders (by self-supervision on the unpaired pools, its cost counted, or real ones).

    auxiliary: each modality's own loss is added. single: only this modality is trained and used. blank: this modality is always
    shown empty. shuffled: the training pairs are dealt out anew."""

    name: str
    what: str
    start: str
    stages: tuple[Stage, ...] = (Stage("joint"),)
    auxiliary: bool = False
    single: str | None = None
    blank: str | None = None
    shuffled: bool = False


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
        Arm("joint_plus_unimodal", "as scratch, with each modality's own loss beside the joint one", "random", auxiliary=True),
        Arm("image_only", "control: the image alone", "random", single="image"),
        Arm("text_only", "control: the text alone", "random", single="text"),
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
