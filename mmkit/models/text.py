"""Text: a word tokenizer that is built from a corpus, and two small encoders over its ids."""

from collections.abc import Callable, Iterable

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from mmkit.data import Dataset
from mmkit.errors import MmkitError
from mmkit.models.encoded import Encoded, masked_mean
from mmkit.models.layers import Transformer

PAD, UNKNOWN, MASK = 0, 1, 2


class WordTokenizer:
    """Lower-cased words and punctuation to ids; 0 pads, 1 is unknown, 2 masks. split: another way to make words of a
    text."""

    def __init__(
        self,
        corpus: Iterable[str],
        *,
        max_words: int = 8000,
        length: int = 32,
        min_count: int = 1,
        split: Callable[[str], list[str]] | None = None,
    ):
        self.length, self.split = length, split
        self._tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        self._tokenizer.normalizer = normalizers.Lowercase()
        self._tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit() if split else pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(
            vocab_size=max_words,
            min_frequency=min_count,
            special_tokens=["[PAD]", "[UNK]", "[MASK]"],
            show_progress=False,
        )
        self._tokenizer.train_from_iterator(self._texts(corpus), trainer)
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(pad_id=PAD)
        if len(self) <= 3:
            raise MmkitError("a tokenizer needs a corpus with words in it, got none")

    @classmethod
    def restored(cls, saved: str, *, length: int, split: Callable[[str], list[str]] | None = None) -> "WordTokenizer":
        """A tokenizer from what `saved` gave."""
        words = cls.__new__(cls)
        words.length, words.split, words._tokenizer = length, split, Tokenizer.from_str(saved)
        return words

    def saved(self) -> str:
        """The tokenizer as JSON text; `split`, which is code, is not in it."""
        return self._tokenizer.to_str()

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def __call__(self, texts: list[str]) -> Tensor:
        """(N, L) int64 ids, L the longest of these texts."""
        return torch.tensor([row.ids for row in self._tokenizer.encode_batch(self._texts(texts))], dtype=torch.int64)

    def _texts(self, texts: Iterable[str]) -> list[str]:
        return [" ".join(self.split(text)) for text in texts] if self.split else list(texts)

    def words(self, ids: Iterable[int]) -> list[str]:
        return [self._tokenizer.id_to_token(int(i)) for i in ids]


_vocabularies: dict[tuple[str, str], WordTokenizer] = {}


def vocabulary(dataset: Dataset, language: str = "en") -> WordTokenizer:
    """The words of a set's unpaired texts (the training texts of a set without a pool), of every role. Made once per
    data set."""
    key = (dataset.content, language)
    if key not in _vocabularies:
        splits = dataset.items["split"].to_numpy()[dataset.texts["item"].to_numpy()]
        pool = "pool_text" if "pool_text" in dataset.splits else "train"
        seen = (splits == pool) & (dataset.texts["language"] == language).to_numpy()
        _vocabularies[key] = WordTokenizer(dataset.texts["text"][seen])
    return _vocabularies[key]


class TextTransformer(nn.Module):
    """A Transformer encoder over word ids with learned positions; the mean of the real tokens is the summary."""

    def __init__(self, vocabulary: int, *, length: int = 32, dim: int = 64, layers: int = 1, heads: int = 4):
        super().__init__()
        self.dim, self.summary_dim = dim, dim
        self.words = nn.Embedding(vocabulary, dim, padding_idx=PAD)
        self.positions = nn.Parameter(torch.randn(1, length, dim) * 0.02)
        self.body = Transformer(dim, layers, heads)

    def forward(self, ids: Tensor) -> Encoded:
        mask = ids != PAD
        tokens = self.body(self.words(ids) + self.positions[:, : ids.shape[1]], mask)
        return Encoded(tokens, mask, masked_mean(tokens, mask))


class GRU(nn.Module):
    """A bidirectional GRU over word ids; the mean of the real states is the summary."""

    def __init__(self, vocabulary: int, *, length: int = 32, dim: int = 64):
        super().__init__()
        self.dim, self.summary_dim = dim, dim
        self.words = nn.Embedding(vocabulary, dim, padding_idx=PAD)
        self.body = nn.GRU(dim, dim // 2, batch_first=True, bidirectional=True)

    def forward(self, ids: Tensor) -> Encoded:
        mask = ids != PAD
        lengths = mask.sum(1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(self.words(ids), lengths, batch_first=True, enforce_sorted=False)
        tokens, _ = nn.utils.rnn.pad_packed_sequence(self.body(packed)[0], batch_first=True, total_length=ids.shape[1])
        return Encoded(tokens, mask, masked_mean(tokens, mask))
