"""Tokenizer import and export: tokenizer.json of a folder <-> an lmjax tokenizer.

Only tokenizer.json is read; for a folder with older files (vocab.txt, spiece.model, ...), transformers converts them.
"""

import json
import logging
import pathlib
from collections.abc import Mapping

from lmjax.data import tokenizers
from lmjax.errors import InputError
from lmjax.hf import folder
from lmjax.objectives.base import Frame

_OLDER = ("vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")


def read(source: pathlib.Path, config: Mapping, section: Mapping) -> tuple[tokenizers.HuggingFace | None, list[str]]:
    """Returns (the folder's tokenizer or None, notes).

    Ids of special tokens come from config.json, else from the names in tokenizer_config.json and
    special_tokens_map.json. Documents begin and end with what tokenizer.json adds to a text; if it adds nothing, a
    decoder's documents begin with its bos id, else its eos id.

    Raises:
        InputError: a tokenizer.json that cannot be read, or with ids beyond the model's table.
    """
    artefact, notes = _artefact(source)
    if artefact is None:
        return None, notes
    path = source / "tokenizer.json"
    hf = tokenizers.parse_artefact(artefact, str(path))
    named = _named(source, hf, config)
    rows = section["vocab_size"]
    largest = max(hf.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= rows:
        raise InputError(f"{path}: expected ids below vocab_size {rows} of config.json, got ids up to {largest}")
    prefix, suffix = _frame(hf, path)
    first = next((named[kind] for kind in ("bos", "eos") if named[kind] >= 0), None)
    if section["family"] == "decoder" and not prefix and first is not None:
        prefix = (first,)
    pad = next((named[kind] for kind in ("pad", "eos") if named[kind] >= 0), 0)
    eos = named["eos"] if named["eos"] >= 0 else (suffix[-1] if suffix else -1)
    specials = tokenizers.SpecialIds(eos, pad, named["mask"], _sentinels(hf))
    starts = (named["decoder_start"] if named["decoder_start"] >= 0 else pad,)
    starts = starts if section["family"] == "encoder_decoder" else ()
    return tokenizers.HuggingFace(artefact, specials, prefix, suffix, starts, str(path)), notes


def _artefact(source):
    """(text of a tokenizer.json or None, notes)."""
    path = source / "tokenizer.json"
    if path.exists():
        try:
            return path.read_text("utf8"), []
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: expected a tokenizer.json, got {error}") from error
    older = [name for name in _OLDER if (source / name).exists()]
    if not older:
        return None, ["the folder has no tokenizer: the model takes ids only, not text"]
    try:
        import transformers
    except ModuleNotFoundError:
        return None, [f"no tokenizer.json; to convert {older}, pip install 'lmjax[hf]' and import again"]
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        slow = transformers.AutoTokenizer.from_pretrained(str(source), local_files_only=True, trust_remote_code=False)
        return slow.backend_tokenizer.to_str(), [f"transformers converted {older} to tokenizer.json"]
    except Exception as error:  # whatever the tokenizer's class raises; the model is usable without it
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        return None, [f"no tokenizer: transformers could not convert {older} to tokenizer.json: {reason}"]


def _named(source, hf, config) -> dict[str, int]:
    """{kind: id} of bos, eos, pad, mask, decoder_start; -1 if absent."""
    texts = [source / name for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")]
    names, ids = {}, {}
    for path in texts:
        if path.exists():
            entries = folder.read_json(path)
            names = {key: value for key, value in entries.items() if key.endswith("_token")} | names
            ids = {key: value for key, value in entries.items() if key.endswith("_token_id")} | ids
    ids |= {key: value for key, value in config.items() if key.endswith("_token_id") and value is not None}

    def one(kind, *fallbacks):
        value = ids.get(f"{kind}_token_id")
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and hf.id_to_token(value) is not None:
            return value
        name = names.get(f"{kind}_token")
        name = name.get("content") if isinstance(name, Mapping) else name
        found = [hf.token_to_id(text) for text in (name, *fallbacks) if text]
        return next((token for token in found if token is not None), -1)

    known = {kind: one(kind) for kind in ("bos", "eos", "pad", "decoder_start")}
    return known | {"mask": one("mask", "[MASK]", "<mask>")}


def _frame(hf, origin) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that tokenizer.json adds before and after a text, found by encoding a text that it knows."""
    reason = "got no text whose ids with special tokens contain those without"
    for text in ("a", "The", "1", ".", *sorted(hf.get_vocab(with_added_tokens=False))[:100]):
        try:
            bare, framed = (hf.encode(text, add_special_tokens=flag).ids for flag in (False, True))
        except Exception as error:  # the library raises bare Exceptions, here for words without an id
            reason = f"cannot encode {text!r}: {error}"
            continue
        for start in range(len(framed) - len(bare) + 1) if bare else ():
            prefix, suffix = framed[:start], framed[start + len(bare) :]
            if framed == [*prefix, *bare, *suffix] and not {*bare} & {*prefix, *suffix}:
                return tuple(prefix), tuple(suffix)
    raise InputError(
        f"{origin}: expected special tokens before or after a text, {reason}; repair the file, or remove it to import "
        "without a tokenizer"
    )


def _sentinels(hf) -> tuple[int, ...]:
    """T5's <extra_id_0>, <extra_id_1>, ..."""
    ids = []
    while (token := hf.token_to_id(f"<extra_id_{len(ids)}>")) is not None:
        ids.append(token)
    return tuple(ids)


def ids(tokenizer: tokenizers.Tokenizer, family: str, frame: Frame) -> dict[str, int]:
    """Returns the special-token ids that config.json of this model family contains; frame: of the model's texts.

    Example: Bytes(2) gives bos and eos 256, pad 257, mask 258, and decoder_start 257 for an encoder-decoder.
    """
    specials = tokenizer.specials
    named = {
        "bos_token_id": tokenizer.prefix[0] if tokenizer.prefix else specials.eos,
        "eos_token_id": specials.eos,
        "pad_token_id": specials.pad,
        "mask_token_id": specials.mask,
    }
    if family == "encoder_decoder":
        named["decoder_start_token_id"] = frame[2][0] if frame[2] else specials.pad
    return {name: token for name, token in named.items() if token >= 0}


def write(tokenizer: tokenizers.Tokenizer, target: pathlib.Path, max_len: int, frame: Frame) -> list[str]:
    """Writes tokenizer.json and tokenizer_config.json of an lmjax tokenizer into a folder; returns notes. Texts get the
    ids of the frame around them.

    In transformers the names of special tokens in a text become the special ids, as users of mask filling and span
    infilling expect; in lmjax they stay text.
    """
    if isinstance(tokenizer, tokenizers.HuggingFace):
        (target / "tokenizer.json").write_text(tokenizer.artefact, "utf8")
        return []
    if not tokenizer.lossless:
        raise InputError(f"expected a tokenizer of bytes or bpe to export, got {tokenizer.name!r}")
    import tokenizers as library

    specials, (prefix, suffix, _) = tokenizer.specials, frame
    hf, names = _with_special_tokens(tokenizer)
    before, after = ([names[token] for token in ids] for ids in (prefix, suffix))
    hf.post_processor = library.processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B:1", *after],
        special_tokens=[(names[token], token) for token in {*prefix, *suffix}],
    )
    hf.save(str(target / "tokenizer.json"))
    sentinels = [names[token] for token in specials.sentinels]
    folder.write_json(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_len,
            "clean_up_tokenization_spaces": False,
            "bos_token": names[prefix[0] if prefix else specials.eos],
            "eos_token": names[specials.eos],
            "pad_token": names[specials.pad],
            "mask_token": names[specials.mask],
            "additional_special_tokens": sentinels,
        },
    )
    known = f", the sentinels {sentinels[0]} .. {sentinels[-1]}" if sentinels else ""
    return [f"in texts for this tokenizer the mask is {names[specials.mask]}{known}"]


def _with_special_tokens(tokenizer) -> tuple:
    """(Hugging Face encoder that knows the special ids, {special id: its name})."""
    import tokenizers as library

    if isinstance(tokenizer, tokenizers.BPE):
        facts = json.loads(tokenizer.artefact)
    else:
        characters = {character: byte for byte, character in tokenizers.byte_characters().items()}
        hf = library.Tokenizer(library.models.BPE(characters, []))
        hf.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        hf.decoder = library.decoders.ByteLevel()
        facts = json.loads(hf.to_str())
    taken = {*facts["model"]["vocab"], *(token["content"] for token in facts.get("added_tokens") or [])}
    named = tokenizer.specials.names().items()
    names = {token: f"<lmjax_{name[1:]}" if name in taken else name for token, name in named}
    facts["model"]["vocab"] |= {name: token for token, name in names.items()}  # an added token takes its id from there
    hf = tokenizers.parse_artefact(json.dumps(facts), "tokenizer.json")
    hf.add_special_tokens([library.AddedToken(name, normalized=False) for name in names.values()])
    return hf, names
