"""Output of `lmjax data` as rich renderables: stores, tokenized documents, training examples."""

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lmjax.data import pipeline
from lmjax.data.store import SPLITS, list_stores
from lmjax.errors import InputError, nearest

__all__ = ["list_stores", "render_documents", "render_examples", "render_stores"]

_DOCUMENT_TOKENS = 200  # shown of one document
_STYLES = {
    "predicted": "bold green",
    "given": "default",
    "prefix": "cyan",
    "mask or sentinel": "bold magenta",
    "end of document": "yellow",
    "padding": "bright_black",
}


def render_stores(rows: list[dict]) -> Group:
    """Returns a table of `list_stores()`, one line per store, followed by errors in red."""
    folders = ", ".join(sorted({row["path"].rpartition("/")[0] for row in rows})) or "none yet"
    table = Table(title=f"token stores in {folders}", title_justify="left")
    table.add_column("source", overflow="fold")
    table.add_column("tokenizer")
    for name in ("documents", "tokens", "text MB", "disk MB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("folder", overflow="fold")
    for row in rows:
        counts = (f"{row['documents']:,}", f"{row['tokens']:,}", f"{row['bytes'] / 1e6:,.2f}")
        table.add_row(row["name"], row["tokenizer"], *counts, f"{row['size'] / 1e6:,.2f}", row["digest"])
    return Group(table, *(Text(row["error"], "red") for row in rows if row["error"]))


def render_documents(data: pipeline.Data, split: str = "train", n: int = 3) -> Group:
    """Returns the first n documents of each source's split: text cut into tokens, neighbours in different colours."""
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}{nearest(split, SPLITS)}")
    panels = []
    for store in data.stores:
        offsets, sizes = store.offsets(split), store.document_bytes(split)
        for i in range(min(n, len(sizes))):
            ids = store.tokens(split)[offsets[i] : offsets[i + 1] + 1]
            text = Text()
            for number, token in enumerate(ids[:_DOCUMENT_TOKENS].tolist()):
                special = token >= data.tokenizer.text_vocab_size
                color = _STYLES["end of document"] if special else ("default", "blue")[number % 2]
                text.append(_shown(data.tokenizer, token), color)
            if len(ids) > _DOCUMENT_TOKENS:
                text.append(f" ... {len(ids) - _DOCUMENT_TOKENS:,} more", "bright_black")
            size = f"{sizes[i]:,} bytes · {len(ids) - 2:,} tokens"
            title = f"{store.manifest['source']} · {split} document {i} · {size}"
            panels.append(Panel(text, title=title, title_align="left"))
    return Group(*panels)


def _shown(tokenizer, token: int) -> str:
    text = tokenizer.show(token)
    return text + "\n" if text.endswith("\\n") else text


def render_examples(data: pipeline.Data, objective, config, n: int = 3) -> Group:
    """Returns the first n training rows as the model gets them: inputs and targets side by side, a legend."""
    batch = pipeline.Pipeline(data, objective, config).rows(range(n))
    legend = Text.assemble(*((f" {name} ", style) for name, style in _STYLES.items()))
    panels = []
    for row in range(n):
        fields = {name: values[row] for name, values in batch.items()}
        columns = [name for name in ("encoder_inputs", "inputs", "contexts", "targets") if name in fields]
        table = Table(*columns, expand=True, show_lines=True)
        table.add_row(*(_flow(data.tokenizer, fields, name) for name in columns))
        title = f"{objective.name} · row {row}"
        if "weights" in fields:
            title += f" · {int((fields['weights'] > 0).sum())} of {len(fields['weights'])} targets predicted"
        for head in objective.heads(data.spec(objective, config.objective.options).options):
            if head.kind != "tokens" and head.targets in fields:
                title += f" · {head.name} {fields[head.targets].tolist()}"
        panels.append(Panel(table, title=title, title_align="left"))
    return Group(legend, *panels)


def _flow(tokenizer, fields: dict, name: str) -> Text:
    """One array as coloured text; a bar where the next packed piece begins."""
    ids, specials = fields[name].tolist(), tokenizer.specials
    segments = fields.get("encoder_segment_ids" if name == "encoder_inputs" else "segment_ids")
    text = Text()
    for place, token in enumerate(ids):
        if segments is not None and place and segments[place] != segments[place - 1]:
            text.append(" | ", "red")
        if token == specials.pad:
            style = "padding"
        elif name == "targets" and fields["weights"][place] > 0:
            style = "predicted"
        elif token == specials.eos:
            style = "end of document"
        elif token == specials.mask or token in specials.sentinels:
            style = "mask or sentinel"
        elif name == "targets":
            style = "padding"
        else:
            style = "prefix" if name == "inputs" and "prefix" in fields and fields["prefix"][place] else "given"
        text.append(_shown(tokenizer, token), _STYLES[style])
    return text
