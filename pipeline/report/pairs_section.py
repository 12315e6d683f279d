"""The section of the report on mismatched pairs: how many there are, and the most doubtful ones with their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.config.settings import Config
from pipeline.report.doubtful_pairs import NO_DOUBT, Drawn, draw_pairs, most_doubtful, percent, shard_of, summary
from pipeline.report.gallery import figure
from pipeline.report.sentences import code
from pipeline.runs.pairs_file import PAIRS, Pair, read_pairs
from pipeline.runs.reader import Run

SHOWN = 12


def pairs_section(run: Run) -> dict[str, str]:
    """Make the section.

    Returns:
        Heading -> HTML with a sentence and a card per pair; empty for a run without a list of pairs.

    Raises:
        UserError: The list is damaged.
    """
    if not (pairs := read_pairs(run.folder)):
        return {}
    doubtful = most_doubtful(pairs, SHOWN)
    drawn, notes = _drawn(run, doubtful)
    listed = f"<p>{NO_DOUBT}</p>"
    if doubtful:
        words = f"The {len(doubtful)} most doubtful ones, with the probability that they match."
        cards = "".join(_card(pair, drawn.get(pair, []), shard_of(pair, pairs)) for pair in doubtful)
        hint = f'<p class="hint">{words} <code>{PAIRS}</code> lists all.</p>'
        listed = f'{hint}<div class="gallery pairs">{cards}</div>'
    missing = "".join(f'<p class="hint">{code(note)}</p>' for note in notes)
    return {"Doubtful pairs": f"<p>{summary(pairs)}.</p>{listed}{missing}"}


def _drawn(run: Run, doubtful: Sequence[Pair]) -> tuple[dict[Pair, list[Drawn | None]], list[str]]:
    """The pictures of pairs, and notes on those that cannot be drawn. The report does not download data."""
    try:
        config = configs.load(run.folder / "config.yaml")
        if not _remote(config):
            return draw_pairs(config, doubtful)
        return {}, [f"No pictures, since the data is remote. `{run.command('check --pairs')}` downloads it."]
    except UserError as error:
        return {}, [f"No pictures: {error}"]


def _remote(config: Config) -> bool:
    return any("://" in path for path in (*(source.path for source in config.data.sources), *config.data.join))


def _card(pair: Pair, drawn: Sequence[Drawn | None], shard: str) -> str:
    """A pair: its pictures, its probability, key and shard."""
    figures = [figure(one.modality, one.picture, [one.caption], one.modality, one.role) for one in drawn if one]
    sides = f'<div class="sides">{"".join(figures)}</div>' if figures else ""
    words = f"<b>{percent(pair)}</b> <code>{escape(pair.key)}</code> in {escape(shard)}"
    return f'<div class="query-row">{sides}<p>{words}</p></div>'
