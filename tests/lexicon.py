"""A lexicon of a few nouns in the format of Princeton's WordNet 3.0."""

from pathlib import Path

NOUNS = [
    # Lemmas, hypernym by place, gloss.
    (["organism"], None, "a living thing"),
    (["animal", "beast"], 0, "a living organism that can move"),
    (["bird"], 1, "warm-blooded egg-laying vertebrate; it has feathers"),
    (["wading_bird", "wader"], 2, "a long-legged bird"),
    (["crane"], 3, 'large long-necked wading bird; "a crane stood in the marsh"'),
    (["lifting_device"], None, "a device that lifts"),
    (["Crane", "derrick"], 5, "lifts and moves heavy objects"),
    (["stork"], 3, "large mostly Old World wading birds"),
    (["owl"], 2, "nocturnal bird of prey"),
]
_HEAD = "  1 This software and database is WordNet 3.0 Copyright  \n"


def write_lexicon(folder: Path) -> list[str]:
    """Write a dict folder of NOUNS; return their ids."""
    folder.mkdir(mode=0o755)
    # The numbers of synsets are the places of their lines, whose lengths do not depend on the numbers.
    offsets = [0] * len(NOUNS)
    for number in range(len(NOUNS) - 1):
        before = offsets[number] if number else len(_HEAD)
        offsets[number] = before
        offsets[number + 1] = before + len(_line(number, offsets))
    text = _HEAD + "".join(_line(number, offsets) for number in range(len(NOUNS)))
    senses: dict[str, list[str]] = {}
    for (lemmas, _, _), offset in zip(NOUNS, offsets, strict=True):
        for lemma in lemmas:
            senses.setdefault(lemma.lower(), []).append(f"{offset:08d}")
    index = [f"{lemma} n {len(own)} 1 @ {len(own)} 0 {' '.join(own)}  \n" for lemma, own in senses.items()]
    for name in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{name}").write_text(text if name == "noun" else _HEAD)
        (folder / f"index.{name}").write_text(_HEAD + "".join(index if name == "noun" else []))
        (folder / f"{name}.exc").write_text("")
    names = ["adj.all", "adj.pert", "adv.all", "noun.Tops"]
    (folder / "lexnames").write_text("".join(f"{i:02d}\t{name}\t1\n" for i, name in enumerate(names)))
    return [f"n{offset:08d}" for offset in offsets]


def _line(number: int, offsets: list[int]) -> str:
    lemmas, above, gloss = NOUNS[number]
    words = " ".join(f"{lemma} 0" for lemma in lemmas)
    pointers = [f" @ {offsets[above]:08d} n 0000"] if above is not None else []
    pointers += [f" ~ {offsets[i]:08d} n 0000" for i, (_, own, _) in enumerate(NOUNS) if own == number]
    joined = f"{len(pointers):03d}{''.join(pointers)}"
    return f"{offsets[number]:08d} 03 n {len(lemmas):02x} {words} {joined} | {gloss}  \n"
