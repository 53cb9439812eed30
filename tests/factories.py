"""Tiny real things that stand in for large ones: a teacher that trains in seconds, a dataset that can be learned.

Everything is made on the spot, from a seed, with no file that is not written here.
"""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer
from transformers.utils import logging as transformers_logging

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LABELS = ("negative", "neutral", "positive")
# Which words betray a label; `tiny_dataset` writes texts of these and of the ones in `FILLER`.
CLUES: dict[str, tuple[str, ...]] = {
    "negative": ("awful", "bad", "broken", "hate", "sad", "terrible", "worst", "angry"),
    "neutral": ("monday", "table", "report", "noon", "train", "weather", "usual", "paper"),
    "positive": ("good", "great", "happy", "love", "lovely", "perfect", "best", "superb"),
}
FILLER = (
    *("the", "a", "this", "that", "was", "is", "it", "my", "our", "their", "film", "day", "service", "phone", "food"),
    *("about", "really", "just", "so", "and", "with", "for", "some", "of", "to"),
)


def tiny_tokenizer() -> Tokenizer:
    """An uncased WordPiece tokenizer of BERT's kind over the words above, with letters and digits as pieces."""
    characters = [chr(code) for code in range(33, 127) if chr(code) == chr(code).lower()]
    letters = [character for character in characters if character.isalnum()]
    words = [*(word for clues in CLUES.values() for word in clues), *(word for word in FILLER if len(word) > 1)]
    pieces = ["##s", "##ed", "##ing", "##ly", "##er"]
    tokens = [*SPECIAL, *characters, *(f"##{letter}" for letter in letters), *pieces, *words]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    cls, sep = vocabulary["[CLS]"], vocabulary["[SEP]"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def tiny_config(labels: Sequence[str] | None = LABELS, *, layers: int = 2, vocabulary: int | None = None) -> BertConfig:
    """A BERT of 32 dimensions and 2 heads. `labels` None: a body without a classification head."""
    names = (
        {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}} if labels else {}
    )
    return BertConfig(
        vocab_size=vocabulary or tiny_tokenizer().get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        **names,
    )


def tiny_network(
    labels: Sequence[str] | None = LABELS, *, seed: int = 0, layers: int = 2
) -> BertForSequenceClassification | BertModel:
    """The network of `tiny_teacher`, in memory and in evaluation mode; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = tiny_config(labels, layers=layers)
        network = BertModel(config) if labels is None else BertForSequenceClassification(config)
    return network.eval()


def tiny_teacher(folder: Path, labels: Sequence[str] | None = LABELS, seed: int = 0, layers: int = 2) -> Path:
    """`folder` with config.json, model.safetensors and the tokenizer's files, as `from_pretrained` reads them.

    `labels` None: a body without a head, as embedding models are published; it needs `fine_tune`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    transformers_logging.disable_progress_bar()
    tiny_network(labels, seed=seed, layers=layers).save_pretrained(folder)
    BertTokenizer(tokenizer_object=tiny_tokenizer(), model_max_length=64).save_pretrained(folder)
    return folder


def tiny_rows(
    rows: int = 240, *, labels: Sequence[str] = LABELS, seed: int = 0, noise: float = 0.0
) -> tuple[list[str], list[str]]:
    """Texts and labels; each text has two or three of its label's words among filler, so that a tiny network learns it.

    The texts differ from each other. `noise` is the share of rows whose label is drawn blindly.
    """
    random = Random(seed)
    texts: list[str] = []
    names: list[str] = []
    seen: set[str] = set()
    while len(texts) < rows:
        label = labels[len(texts) % len(labels)]
        clues = CLUES.get(label) or tuple(CLUES.values())[list(labels).index(label) % len(CLUES)]
        words = random.sample(FILLER, random.randint(3, 8)) + random.sample(clues, random.randint(2, 3))
        random.shuffle(words)
        text = " ".join(words)
        if text in seen:
            continue
        seen.add(text)
        texts.append(text)
        names.append(random.choice(list(labels)) if random.random() < noise else label)
    return texts, names


def tiny_dataset(
    folder: Path, rows: int = 240, *, labels: Sequence[str] = LABELS, seed: int = 0, noise: float = 0.0
) -> Path:
    """A Parquet file with the columns `text` and `label`; its path."""
    texts, names = tiny_rows(rows, labels=labels, seed=seed, noise=noise)
    return parquet(folder / f"rows-{rows}-{seed}.parquet", text=texts, label=names)


def parquet(path: Path, **columns: Sequence[object]) -> Path:
    """`path` with the given columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path
