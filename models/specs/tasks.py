"""The kinds of task: which columns hold what, and how long a text may be."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from models.specs.base import MAX_LENGTH, Column, Reserved, Spec

Length = Annotated[int, Field(ge=8, le=MAX_LENGTH)]


class TextClassification(Spec):
    """One label of two or more for a text or a pair of texts; with `multi_label` any number of them."""

    kind: Literal["text-classification"]
    text: Column
    """The column with the text."""
    text_pair: Column | None = None
    """The column with the second text, such as a hypothesis; null: one text."""
    label: Column
    """The column with the label: text, integers or booleans; with `multi_label` a list of them, or text with the labels
    between vertical bars. Empty (null, where a list may be empty) means that the row has none."""
    multi_label: bool = False
    """A row may have any number of labels, also none."""
    max_length: Length = 128
    """Tokens of one input, special tokens included; longer texts are cut."""


class TextRegression(Spec):
    """A number for a text or a pair of texts, such as their similarity."""

    kind: Literal["text-regression"]
    text: Column
    text_pair: Column | None = None
    target: Column
    """The column with the number; empty means that the row has none."""
    max_length: Length = 128


class TokenClassification(Spec):
    """A tag for each word, in the BIO scheme where the words of an entity belong together."""

    kind: Literal["token-classification"]
    tokens: Column
    """The column with a list of words."""
    tags: Column
    """The column with a list of tags, one for each word, such as O, B-person, I-person; null: the row has none."""
    max_length: Length = 128
    """Tokens of one row, special tokens included; words that do not fit are not learned from, and count as wrong."""


class QuestionAnswering(Spec):
    """The stretch of a context that answers a question; long contexts are read in overlapping windows."""

    kind: Literal["question-answering"]
    question: Column
    context: Column
    answers: Column
    """The column with the answers: `{"text": […], "answer_start": […]}` as in SQuAD; empty lists: the context has no
    answer; null: the row has no label."""
    max_length: Length = 384
    """Tokens of one window, question and special tokens included."""
    stride: int = Field(128, ge=0, le=MAX_LENGTH)
    """Tokens of the context that a window shares with the one before it."""

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.stride > self.max_length // 2:
            raise PydanticCustomError(
                "impossible_stride",
                "stride {stride} is more than half of max_length {length}",
                {"stride": self.stride, "length": self.max_length},
            )
        return self


class TextGeneration(Reserved):
    kind: Literal["text-generation"]


class Text2Text(Reserved):
    kind: Literal["text2text-generation"]


Task = Annotated[
    TextClassification | TextRegression | TokenClassification | QuestionAnswering | TextGeneration | Text2Text,
    Field(discriminator="kind"),
]
