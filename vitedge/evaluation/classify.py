"""``vitedge classify``: pictures to predictions."""

from __future__ import annotations

from collections.abc import Iterator

from vitedge.core.schema import Record
from vitedge.data.images import ImageSet
from vitedge.errors import ImageError
from vitedge.runtimes.options import TOP_K
from vitedge.runtimes.session import Session


class Answer(Record):
    """One class and its probability."""

    label: str
    probability: float


class Classified(Record):
    """One picture: its predictions, best first, or the reason why it couldn't be read."""

    picture: str
    answers: tuple[Answer, ...] = ()
    problem: str = ""


def classify(session: Session, images: ImageSet, top_k: int = TOP_K) -> Iterator[Classified]:
    """Classify pictures one at a time, in the order of their names.

    A single picture that can't be read is an error; among several it's an entry with a problem.

    Raises:
        ImageError: the only picture can't be read.
        InvalidResultError: the logits aren't finite.
    """
    for index, record in enumerate(images.records):
        try:
            predictions = session.classify(images.read(index), top_k)
        except ImageError as error:
            if len(images) == 1:
                raise
            yield Classified(picture=record.name, problem=error.reason)
            continue
        answers = tuple(Answer(label=answer.label, probability=answer.probability) for answer in predictions)
        yield Classified(picture=record.name, answers=answers)
