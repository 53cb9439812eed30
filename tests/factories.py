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


def tiny_pairs(folder: Path, rows: int = 240, *, seed: int = 0) -> Path:
    """A Parquet file with `text`, `text_pair` and `label`: the label is betrayed by the second text alone."""
    texts, names = tiny_rows(rows, seed=seed)
    random = Random(seed)
    first = [" ".join(random.sample(FILLER, random.randint(3, 6))) for _ in texts]
    return parquet(folder / f"pairs-{rows}-{seed}.parquet", text=first, text_pair=texts, label=names)


def tiny_label_sets(folder: Path, rows: int = 240, *, seed: int = 0) -> Path:
    """A Parquet file with `text` and `labels`, a list: each label is betrayed by two of its words, or there is none."""
    random = Random(seed)
    found: dict[str, list[str]] = {}
    while len(found) < rows:
        names = random.sample(LABELS, random.choice((0, 1, 1, 2)))
        words = random.sample(FILLER, random.randint(3, 6))
        words += [word for name in names for word in random.sample(CLUES[name], 2)]
        random.shuffle(words)
        found.setdefault(" ".join(words), sorted(names))
    return parquet(folder / f"sets-{rows}-{seed}.parquet", text=list(found), labels=list(found.values()))


def tiny_numbers(folder: Path, rows: int = 240, *, seed: int = 0) -> Path:
    """A Parquet file with `text` and `score`: how many of five words are positive rather than negative, over 5."""
    random = Random(seed)
    found: dict[str, float] = {}
    while len(found) < rows:
        positive = random.randint(0, 5)
        words = random.sample(CLUES["positive"], positive) + random.sample(CLUES["negative"], 5 - positive)
        words += random.sample(FILLER, random.randint(1, 4))
        random.shuffle(words)
        found.setdefault(" ".join(words), positive / 5)
    return parquet(folder / f"numbers-{rows}-{seed}.parquet", text=list(found), score=list(found.values()))


def tiny_tokens_dataset(folder: Path, rows: int = 240, *, seed: int = 0) -> Path:
    """A Parquet file with `tokens` and `tags`: one or two clues in a row are an entity of the type `good` or `bad`."""
    random = Random(seed)
    found: dict[tuple[str, ...], list[str]] = {}
    while len(found) < rows:
        words, tags = [random.choice(FILLER)], ["O"]
        for clues, kind in random.sample((("positive", "good"), ("negative", "bad")), random.choice((0, 1, 1, 2))):
            entity = random.sample(CLUES[clues], random.randint(1, 2))
            filler = random.sample(FILLER, random.randint(1, 3))
            words += [*entity, *filler]
            tags += [f"B-{kind}", *[f"I-{kind}"] * (len(entity) - 1), *["O"] * len(filler)]
        found.setdefault(tuple(words), tags)
    return parquet(
        folder / f"tokens-{rows}-{seed}.parquet", tokens=[list(words) for words in found], tags=list(found.values())
    )


def tiny_questions_dataset(folder: Path, rows: int = 240, *, seed: int = 0) -> Path:
    """A Parquet file with `question`, `context` and `answers`: the one positive or neutral clue that the context has.

    Every fourth row asks for the kind that its context has nothing of, and has no answer.
    """
    random = Random(seed)
    columns: dict[str, dict[str, object]] = {}
    while len(columns) < rows:
        kind = random.choice(("positive", "neutral"))
        words = random.sample(FILLER, random.randint(4, 8))
        place = random.randint(1, len(words) - 1)
        answer = random.choice(CLUES[kind])
        context = " ".join([*words[:place], answer, *words[place:]])
        start = len(" ".join(words[:place])) + 1
        if context in columns:
            continue
        none = len(columns) % 4 == 3
        asked = kind if not none else "neutral" if kind == "positive" else "positive"
        columns[context] = {
            "question": "is it good" if asked == "positive" else "the usual",
            "answers": {"text": [] if none else [answer], "answer_start": [] if none else [start]},
        }
    path = folder / f"questions-{rows}-{seed}.parquet"
    return parquet(
        path,
        question=[one["question"] for one in columns.values()],
        context=list(columns),
        answers=[one["answers"] for one in columns.values()],
    )
