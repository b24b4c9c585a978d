"""Teachers of another tokenizer: which tokens are compared with which, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cookbook import opd
from cookbook.advantages import reverse_kl
from cookbook.byte_spans import ByteSpanTeacher, Span, TokenBytes, spans
from cookbook.metrics import read_metrics
from cookbook.renderers import Renderer, chatml
from cookbook.rollouts import Grade, Group, Trajectory
from cookbook.teachers import Teacher, VocabularyMismatch
from tests.cookbook.groups import PROBLEM
from tests.tiny import IM_END, make_tiny_model
from tinkerlite import SamplingClient, ServiceClient
from tinkerlite.types import ModelInput

OTHER_TEXT = "two and three are five, naturally; the capital is the capital of France: Paris, Paris. " * 4


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that cuts text into other tokens, fewer of them."""
    folder = tmp_path_factory.mktemp("models") / "other"
    return make_tiny_model(folder, vocab_size=300, text=OTHER_TEXT, seed=5)


@pytest.fixture(scope="module")
def service(tiny_folder: Path, other_folder: Path) -> Iterator[ServiceClient]:
    with ServiceClient(base_url=f"local://{tiny_folder},{other_folder}") as client:
        yield client


@pytest.fixture(scope="module")
def base(service: ServiceClient, tiny_folder: Path) -> SamplingClient:
    return service.create_sampling_client(base_model=str(tiny_folder))


@pytest.fixture(scope="module")
def other(service: ServiceClient, other_folder: Path) -> SamplingClient:
    return service.create_sampling_client(base_model=str(other_folder))


@pytest.fixture(scope="module")
def other_renderer(other_folder: Path) -> Renderer:
    return chatml(AutoTokenizer.from_pretrained(other_folder))


@pytest.fixture(scope="module")
def written(base: SamplingClient, renderer: Renderer) -> Callable[[list[int]], Group]:
    """A group of one completion, with the student's logprobs."""

    def group(tokens: list[int]) -> Group:
        prompt = renderer.generation_prompt(PROBLEM.messages)
        scores = base.compute_logprobs(ModelInput.from_ints(prompt + tokens)).result()[len(prompt) :]
        trajectory = Trajectory(
            prompt_tokens=prompt,
            completion_tokens=tokens,
            logprobs=np.asarray(scores, dtype=np.float32),
            truncated=tokens[-1] != IM_END,
            finished=tokens[-1] == IM_END,
            reply="",
            grade=Grade(reward=0.0, correct=False),
        )
        return Group(problem=PROBLEM, trajectories=(trajectory,))

    return group


def log_p(sampler: SamplingClient, prompt: list[int], tokens: list[int]) -> list[float]:
    scores = sampler.compute_logprobs(ModelInput.from_ints(prompt + tokens)).result()[len(prompt) :]
    return [score for score in scores if score is not None]


# ---- spans ----


def test_spans_end_where_both_have_a_border():
    student = [b"The", b" capi", b"tal", b" of"]
    teacher = [b"The", b" capital", b" ", b"of"]
    assert spans(student, teacher) == [
        Span(range(0, 1), range(0, 1)),
        Span(range(1, 3), range(1, 2)),
        Span(range(3, 4), range(2, 4)),
    ]


def test_spans_stop_where_the_texts_differ():
    assert spans([b"a", b"bc", b"d"], [b"a", b"b", b"x"]) == [Span(range(0, 1), range(0, 1))]
    assert spans([b"x"], [b"y"]) == []
    assert spans([b"ab"], [b"a"]) == []


def test_the_spans_of_any_text_cover_it_and_spell_the_same_on_both_sides(
    tokenizer: Any, other_renderer: Renderer
):
    ours, theirs = TokenBytes(tokenizer), TokenBytes(other_renderer.tokenizer)
    random = Random(0)
    pieces = ["the capital", " of", "\n", "🙂", "naïve", " 東京", "12 + 3", "\u0301", "x" * 7, "  ", "𝄞", "و"]
    merged = 0
    for _ in range(200):
        text = "".join(random.choices(pieces, k=random.randint(1, 12)))
        student, teacher = ours.encode(text), theirs.encode(text)
        found = spans([ours.of(t) for t in student], [theirs.of(t) for t in teacher])
        assert [i for span in found for i in span.student] == list(range(len(student)))
        assert [i for span in found for i in span.teacher] == list(range(len(teacher)))
        for span in found:
            assert ours.spell([student[i] for i in span.student]) == theirs.spell(
                [teacher[i] for i in span.teacher]
            )
        merged += sum(len(span.student) > 1 or len(span.teacher) > 1 for span in found)
    assert merged > 200


def test_a_vocabulary_of_characters_and_single_bytes_is_spelt_too(tokenizer: Any):
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁"] + [chr(c) for c in range(97, 123)]
    model = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], byte_fallback=True))
    model.normalizer = normalizers.Replace(" ", "▁")
    model.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    theirs = TokenBytes(PreTrainedTokenizerFast(tokenizer_object=model))
    assert [theirs.of(t) for t in theirs.encode("a 🙂")] == [b"a", b" ", b"\xf0", b"\x9f", b"\x99", b"\x82"]


def test_a_tokenizer_that_rewrites_text_is_refused(tiny_folder: Path):
    model = Tokenizer.from_file(str(tiny_folder / "tokenizer.json"))
    model.normalizer = normalizers.Lowercase()
    with pytest.raises(VocabularyMismatch, match=r"'The capital.*' is spelt b'the capital.*rewrites text"):
        TokenBytes(PreTrainedTokenizerFast(tokenizer_object=model))


def test_an_added_token_that_is_not_special_is_text_like_any_other(tiny_folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_tokens(["<think>"])
    [token] = tokenizer.encode("<think>")
    spelt = TokenBytes(tokenizer)
    assert spelt.of(token) == b"<think>"
    assert not spelt.is_special(token)
    assert spelt.is_special(IM_END)


# ---- scores ----


@pytest.mark.parametrize("text", ["Paris.", "It is five, and naïve 🙂.", ""])
def test_with_the_students_own_tokenizer_it_is_the_usual_teacher_number_for_number(
    base: SamplingClient, renderer: Renderer, tokenizer: Any, written: Callable[[list[int]], Group], text: str
):
    group = written([*tokenizer.encode(text, add_special_tokens=False), IM_END])
    [[by_spans]] = ByteSpanTeacher(base, renderer, renderer).score([group])
    [[by_tokens]] = Teacher(base, tokenizer).score([group])
    assert by_spans == pytest.approx(by_tokens, abs=1e-5)


def test_the_scores_of_a_completion_add_up_to_what_the_teacher_gives_the_text_and_its_end(
    other: SamplingClient,
    renderer: Renderer,
    other_renderer: Renderer,
    tokenizer: Any,
    written: Callable[[list[int]], Group],
):
    text = "The capital of France is Paris 🙂"
    group = written([*tokenizer.encode(text), IM_END])
    teacher = ByteSpanTeacher(other, renderer, other_renderer)
    [[scores]] = teacher.score([group])
    theirs = [*other_renderer.tokenizer.encode(text), *other_renderer.stop_tokens]
    assert len(theirs) != len(scores)
    assert scores.sum() == pytest.approx(sum(log_p(other, teacher.prompt(PROBLEM), theirs)), abs=1e-3)
    assert np.abs(scores - group.trajectories[0].logprobs).min() > 1e-4, "there is an opinion on every token"


@pytest.mark.parametrize("ending", ["half a character", "a special token"])
def test_there_is_no_opinion_from_what_the_teacher_cannot_be_shown_on(
    other: SamplingClient,
    renderer: Renderer,
    other_renderer: Renderer,
    tokenizer: Any,
    written: Callable[[list[int]], Group],
    ending: str,
):
    readable = tokenizer.encode("Paris is")
    unreadable = (
        tokenizer.encode("🙂")[:-1] if ending == "half a character" else [0, *tokenizer.encode(" it")]
    )
    group = written([*readable, *unreadable])
    [[scores]] = ByteSpanTeacher(other, renderer, other_renderer).score([group])
    own = group.trajectories[0].logprobs
    assert np.abs(scores - own)[: len(readable)].min() > 1e-4
    assert scores[len(readable) :].tolist() == own[len(readable) :].tolist()
    [[advantages]] = reverse_kl(ByteSpanTeacher(other, renderer, other_renderer))([group])
    assert not advantages[len(readable) :].any()


def test_a_completion_without_any_text_is_not_even_asked_about(
    other: SamplingClient, renderer: Renderer, other_renderer: Renderer, written: Callable[[list[int]], Group]
):
    group = written([0, 0])
    [[scores]] = ByteSpanTeacher(other, renderer, other_renderer).score([group])
    assert scores.tolist() == group.trajectories[0].logprobs.tolist()


# ---- as a user starts it ----


def test_the_recipe_compares_models_of_two_vocabularies_when_asked_to_and_says_so_when_not(
    tiny_folder: Path, other_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--base-url", f"local://{tiny_folder},{other_folder}", "--model", str(tiny_folder)]
    arguments += ["--teacher", str(other_folder), "--out", str(tmp_path), "--steps", "1", "--held-out", "2"]
    arguments += ["--max-tokens", "4", "--rank", "4", "--prompts-per-step", "2", "--group-size", "2"]
    with pytest.raises(SystemExit, match="--byte-spans"):
        opd.main(arguments)
    opd.main([*arguments, "--byte-spans"])
    assert capsys.readouterr().out.count("<|im_start|>user\\n") == 2
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]
