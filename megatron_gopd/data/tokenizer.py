"""Tokenizers from local Hugging Face directories, and the proof that two models share one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_gopd.config import Config
from megatron_gopd.config.hub import how_to_download
from megatron_gopd.data.side_files import read_json
from megatron_gopd.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_DIFFERENCES = 5
# leading word, two blanks, newline, digits, bytes outside any small vocabulary
PROBE = "What is  27 + 4?\n\tAnswer: \u00e9\u4e16"


@dataclass(frozen=True)
class Tokenizers:
    """Every tokenizer a run renders prompts with; the maps of all are the same, templates may differ."""

    student: PreTrainedTokenizerBase
    teachers: dict[str, PreTrainedTokenizerBase]
    references: dict[str, PreTrainedTokenizerBase]  # by teacher: the tokenizer of that teacher's reference


def load_tokenizers(config: Config) -> Tokenizers:
    """Load the tokenizers of all models of a run; raises UserError where one differs from the student's."""
    referred = config.teachers if config.algorithm.REFERENCE_OF_EACH_TEACHER else ()
    references = {name: config.reference_of(name) for name in referred}
    frozen = [*config.teachers.values(), *references.values(), *config.scorers().values()]
    folders = {config.student.model, *(model.model for model in frozen)}
    loaded = {folder: load_tokenizer(folder) for folder in sorted(folders)}
    student = loaded[config.student.model]
    for folder, tokenizer in loaded.items():
        check_same_tokenizer(student, tokenizer, config.student.model, folder)
    return Tokenizers(
        student,
        {name: loaded[teacher.model] for name, teacher in config.teachers.items()},
        {name: loaded[reference.model] for name, reference in references.items()},
    )


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local Hugging Face directory: tokenizer.json, tokenizer.model or vocab.json.

    The file is the truth. transformers 5 rebuilds some classes from the vocabulary alone (LlamaTokenizer over a
    byte-level tokenizer.json loses every blank; Qwen2Tokenizer adds a token), so tokenizer.json is read as it stands.
    Raises UserError when the directory has no tokenizer, a broken one, or one with more ids than the model has rows.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(folder)
    files = [name for name in ("tokenizer.json", "tokenizer.model", "vocab.json") if (folder / name).is_file()]
    if not files:
        none = f"no such directory{how_to_download(folder, 'model')}"
        missing = "no tokenizer.json, tokenizer.model or vocab.json in it" if folder.is_dir() else none
        raise UserError(f"{folder}: cannot load a tokenizer: {missing}; name a local Hugging Face directory with one")
    named = "tokenizer_class" in read_json(folder / "tokenizer_config.json")
    bare_sentencepiece = files[0] == "tokenizer.model" and not named
    loader = PreTrainedTokenizerFast if files[0] == "tokenizer.json" or bare_sentencepiece else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        if bare_sentencepiece:
            _complete_conversion(tokenizer, folder / "tokenizer.model")
        _refuse_ids_without_embedding(tokenizer, folder)
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder / files[0]}: not a usable tokenizer: {reason}; copy the file again") from error
    return tokenizer


def _complete_conversion(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Give a converted tokenizer.model the whitespace rules transformers leaves out, and compare it with the original.

    Only for a directory that names no tokenizer_class: a named class brings rules of its own.
    """
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
    from tokenizers import Regex, decoders, normalizers

    rules = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes()).normalizer_spec
    backend = tokenizer.backend_tokenizer
    steps = [backend.normalizer]
    if rules.remove_extra_whitespaces:
        steps += [
            normalizers.Replace(Regex("\u2581{2,}"), "\u2581"),
            normalizers.Replace(Regex(r"\A\u2581|\u2581\z"), ""),
        ]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend("\u2581"))
        backend.decoder = decoders.Sequence([backend.decoder, decoders.Fuse(), decoders.Strip(content=" ", left=1)])
    backend.normalizer = normalizers.Sequence(steps)
    expected = SentencePieceProcessor(str(path)).encode(PROBE)
    if tokenizer(PROBE, add_special_tokens=False)["input_ids"] != expected:
        raise UserError(
            f"{path}: converted, it gives other ids than sentencepiece does; "
            f"add the model's tokenizer.json, or name its tokenizer_class in {path.parent / 'tokenizer_config.json'}"
        )


def check_same_tokenizer(
    student: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, student_name: str, other_name: str
) -> None:
    """Raise UserError unless both tokenizers map the same tokens (added ones too) to the same ids.

    Embedding sizes padded in config.json do not matter: only the maps are compared.
    """
    ours, theirs = student.get_vocab(), other.get_vocab()
    if ours == theirs:
        return
    ours_at, theirs_at = ({index: token for token, index in vocab.items()} for vocab in (ours, theirs))
    differing = [i for i in sorted(ours_at.keys() | theirs_at.keys()) if ours_at.get(i) != theirs_at.get(i)]
    shown = "; ".join(f"id {i}: {ours_at.get(i)!r} / {theirs_at.get(i)!r}" for i in differing[:SHOWN_DIFFERENCES])
    raise UserError(
        f"{student_name} ({len(ours)} tokens) and {other_name} ({len(theirs)} tokens) have different tokenizers: "
        f"{len(differing)} ids differ ({shown}{'; ...' if len(differing) > SHOWN_DIFFERENCES else ''}). "
        f"A sampled id must mean the same to every model: name models that share one tokenizer"
    )


def _refuse_ids_without_embedding(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Rows of an embedding may outnumber the ids, which pads them; not the other way round."""
    last = max(tokenizer.get_vocab().values(), default=0)
    rows = read_json(folder / "config.json").get("vocab_size")
    if type(rows) is int and last >= rows:
        raise UserError(
            f"{folder}: its tokenizer has ids up to {last}, but vocab_size in config.json is {rows}: the embedding has "
            f"no row for them; put back the tokenizer of this model, or resize its embedding"
        )
