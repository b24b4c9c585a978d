"""What the server offers: its models, and whether student and teacher speak of the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinkerlite.connection import Connection
from tinkerlite.doctor.findings import Finding
from tinkerlite.errors import CapabilityError
from tinkerlite.tokenizers import load_tokenizer
from tinkerlite.types import GetServerCapabilitiesResponse, SupportedModel

_VOCABULARY = "vocabulary"


@dataclass(frozen=True)
class Offer:
    """The models that a server says it has; none where it does not say."""

    models: Sequence[SupportedModel]

    def model(self, name: str) -> SupportedModel:
        """What the server says of a model; nothing but its name if it does not list it."""
        known = (each for each in self.models if each.model_name == name)
        return next(known, SupportedModel(model_name=name))

    def default_student(self) -> str | None:
        """The first model that can be trained, else the first."""
        named = [each for each in self.models if each.model_name]
        trainable = [each for each in named if each.trainable is not False]
        return next((each.model_name for each in [*trainable, *named]), None)


def look_up(connection: Connection) -> Offer:
    """Ask for the list."""
    ask = connection.ask(GetServerCapabilitiesResponse, "GET", "get_server_capabilities")
    return Offer(connection.wait(ask).supported_models)


def describe(offer: Offer, student: str, teacher: str | None) -> Finding:
    """The models, in words; those that were asked for should be among them."""
    listed = ", ".join(_in_words(each) for each in offer.models) or "none"
    names = [each.model_name for each in offer.models]
    unknown = [name for name in (student, teacher) if name is not None and name not in names]
    return Finding(
        check="models",
        outcome="warn" if unknown else "pass",
        says=f"the server lists {listed}" + (f"; not {' or '.join(unknown)}" if unknown else ""),
        advice="it may still serve what it does not list; otherwise name one that it does" if unknown else "",
        measured={"models": [each.model_dump(exclude_none=True) for each in offer.models]},
    )


def _in_words(model: SupportedModel) -> str:
    known = [
        f"context {model.max_context_length}" if model.max_context_length else "",
        model.dtype or "",
        "not for training" if model.trainable is False else "",
    ]
    facts = ", ".join(fact for fact in known if fact)
    return f"{model.model_name} ({facts})" if facts else str(model.model_name)


# ---- vocabularies ----


def compare_vocabularies(connection: Connection, offer: Offer, student: str, teacher: str) -> Finding:
    """Whether two models give every token the same id.

    The sizes of their embeddings say nothing, since models of one family pad one vocabulary
    differently; so equal hashes of the token map decide, and where there are none, the maps.

    Raises:
        CapabilityError: there are neither hashes nor tokenizers.
    """
    hashes = [offer.model(name).tokenizer_hash for name in (student, teacher)]
    measured: dict[str, object] = {"student": student, "teacher": teacher, "hashes": hashes}
    if all(hashes) and hashes[0] == hashes[1]:
        says = f"{student} and {teacher} share one: their token maps have the same hash"
        return Finding(check=_VOCABULARY, outcome="pass", says=says, measured=measured)
    try:
        maps = [load_tokenizer(connection, name).get_vocab() for name in (student, teacher)]
    except CapabilityError:
        if not all(hashes):
            raise
        says = f"{student} and {teacher} have different ones: their token maps have different hashes"
        return _different(says, measured)
    return _compare(student, teacher, maps[0], maps[1], measured)


def _compare(
    student: str,
    teacher: str,
    ours: Mapping[str, int],
    theirs: Mapping[str, int],
    measured: dict[str, object],
) -> Finding:
    tokens, other = ({number: text for text, number in each.items()} for each in (ours, theirs))
    clashes = sorted(number for number in tokens.keys() & other.keys() if tokens[number] != other[number])
    alone = [len(tokens.keys() - other.keys()), len(other.keys() - tokens.keys())]
    measured |= {"clashing_ids": len(clashes), "ids_of_the_student_alone": alone[0]}
    measured |= {"ids_of_the_teacher_alone": alone[1]}
    if clashes:
        first = clashes[0]
        return _different(
            f"{student} and {teacher} have different ones: {len(clashes)} ids mean different tokens, "
            f"{first} first ({tokens[first]!r} and {other[first]!r})",
            measured,
        )
    if any(alone):
        return Finding(
            check=_VOCABULARY,
            outcome="warn",
            says=f"{student} and {teacher} agree on {len(tokens.keys() & other.keys())} ids; the student "
            f"alone has {alone[0]} more, and the teacher {alone[1]}",
            advice="distillation works as long as the student samples none of its own",
            measured=measured,
        )
    says = f"{student} and {teacher} share one: their tokenizers map all {len(tokens)} tokens alike"
    return Finding(check=_VOCABULARY, outcome="pass", says=says, measured=measured)


def _different(says: str, measured: Mapping[str, object]) -> Finding:
    return Finding(
        check=_VOCABULARY,
        outcome="fail",
        says=says,
        advice="a teacher's logprobs of the student's tokens would mean nothing: choose a teacher with the "
        "student's vocabulary, usually of the same model family",
        measured=measured,
    )


def group_vocabularies(offer: Offer, student: str) -> Finding:
    """Which of the listed models could teach the student, by their hashes alone."""
    own = offer.model(student).tokenizer_hash
    others = [each for each in offer.models if each.model_name != student]
    alike = [str(each.model_name) for each in others if own is not None and each.tokenizer_hash == own]
    if own is None or any(each.tokenizer_hash is None for each in others):
        says = "the server offers no hashes of its vocabularies; name a pair with --student and --teacher"
        return Finding(check=_VOCABULARY, outcome="skip", says=says)
    if not others:
        says = "there is only one model, and no teacher for it"
        return Finding(check=_VOCABULARY, outcome="skip", says=says)
    measured = {"student": student, "same_vocabulary": alike}
    if not alike:
        says = f"no other model shares the vocabulary of {student}"
        advice = "a teacher of this student must: serve one of its family"
        return Finding(check=_VOCABULARY, outcome="warn", says=says, advice=advice, measured=measured)
    says = f"{student} shares its own with {', '.join(alike)}"
    return Finding(check=_VOCABULARY, outcome="pass", says=says, measured=measured)
