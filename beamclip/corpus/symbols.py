"""The symbols of the embedded corpus, as data: code points by family, names in plain words, styles.

A symbol is a Unicode character that DejaVu Sans can draw. The list was chosen by comparing drawings:
characters that look like one already listed (another script's letter, a heavier or smaller twin) are left
out. Names come from the Unicode character database through `unicodedata.name`, whose names never change
once assigned. In those names "black" and "white" mean filled and outlined, not colours; since the corpus
draws in every colour, they are read here as "solid" and "hollow".
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from functools import cache

NOVEL_SHARE = 0.05
"""Share of the classes that are never trained on."""


@dataclass(frozen=True)
class SymbolFamily:
    """Symbols of one kind."""

    name: str
    """What each of its symbols is, in the singular."""
    group: str
    """The wider kind it belongs to."""
    code_points: str
    """Hexadecimal code points and inclusive ranges, separated by spaces."""
    noun: str = ""
    """Appended to names that do not say what they name: "element of" becomes "element of sign"."""


@dataclass(frozen=True)
class Symbol:
    """One class of the corpus."""

    id: str
    """Code point as "U+2658"."""
    char: str
    """The character itself."""
    name: str
    """Plain words, lower case; unique in the corpus."""
    parents: tuple[str, str]
    """Family, then group: nearest first."""
    train_styles: tuple[str, ...]
    """Names of the drawing styles it is trained in."""
    held_out_style: str
    """Name of the one style it is tested in, never trained on."""
    novel: bool
    """Whether the class is kept out of training altogether."""


FAMILIES = (
    SymbolFamily(
        "square",
        "geometric shape",
        "259A 259E 25A0 25A1 25A3-25A9 25E7-25EB 25F0-25F3 2B12-2B15 2B1A",
    ),
    SymbolFamily("rectangle", "geometric shape", "25AC-25B1"),
    SymbolFamily(
        "triangle",
        "geometric shape",
        "25B2 25B3 25B6 25B7 25BA-25BD 25C0 25C1 25C4 25C5 25E2-25E5 25EC-25EE 25F8-25FA",
    ),
    SymbolFamily("diamond", "geometric shape", "25C6-25C8 2756 27E0 2B16-2B19"),
    SymbolFamily("circle", "geometric shape", "25C9 25CB-25DB 25E0 25E1 25F4-25F7"),
    SymbolFamily("polygon", "geometric shape", "232C 23E3 2B1F-2B23 2B53 2B54"),
    SymbolFamily("corner or arc", "geometric shape", "2308 2309 2310 2319 231C-231F 25DC-25DF"),
    SymbolFamily("chess piece", "board game piece", "2654-265F"),
    SymbolFamily("draughts piece", "board game piece", "26C0-26C3"),
    SymbolFamily("shogi piece", "board game piece", "2616 2617"),
    SymbolFamily("go marker", "board game piece", "2686 2689"),
    SymbolFamily("die", "dice and tiles", "2680-2685"),
    SymbolFamily(
        "domino tile",
        "dice and tiles",
        "1F030 1F031 1F033 1F035 1F037 1F039 1F03B 1F03D 1F041 1F043 1F045 1F049 1F04B 1F051 1F053 1F059 "
        "1F061",
    ),
    SymbolFamily(
        "playing card",
        "card game symbol",
        "1F0A0 1F0A1 1F0A7 1F0AA 1F0AB 1F0AD 1F0AE 1F0B1 1F0B7 1F0BA 1F0BB 1F0BD 1F0BE 1F0C1 1F0C7 1F0CA "
        "1F0CB 1F0CD-1F0CF 1F0D1 1F0D7 1F0DA 1F0DB 1F0DD-1F0DF",
    ),
    SymbolFamily("card suit", "card game symbol", "2660-2667"),
    SymbolFamily("human face", "face", "2639-263B 1F600-1F604 1F606-1F623 1F625-1F62B 1F62D-1F637"),
    SymbolFamily("cat face", "face", "1F638-1F640"),
    SymbolFamily("weather sign", "nature", "2600-2604 2607 2608 2614 2668 2744-2746"),
    SymbolFamily("plant", "nature", "2618 2619 2698 273E-2741 2766 2767"),
    SymbolFamily("hand", "body and life", "261A-261F 270C 270D"),
    SymbolFamily("health symbol", "body and life", "2624 267F 2695 269A"),
    SymbolFamily("gender sign", "body and life", "2640 2642 26A2-26A9 26AD-26AF"),
    SymbolFamily("planet", "sky", "263F 2641 2643-2647 26E2", "symbol"),
    SymbolFamily("sun or moon", "sky", "2609 263C-263E"),
    SymbolFamily("asteroid", "sky", "26B3-26B8", "symbol"),
    SymbolFamily("zodiac sign", "sky", "2648-2653", "zodiac sign"),
    SymbolFamily("node or aspect", "sky", "260A-260D", "symbol"),
    SymbolFamily("cross", "faith symbol", "2626-2629 2670 2671 2719-2720"),
    SymbolFamily("emblem of a faith or people", "faith symbol", "2625 262A-262F 2638 269B 269C 2721"),
    SymbolFamily("tool", "object", "2692-2694 2696 2697 2699 2701-2704"),
    SymbolFamily("office object", "object", "2328 260E 260F 2706 2707 2709 270E-2712"),
    SymbolFamily("everyday object", "object", "2302 2615 2690 2691 26B0 26B1 2708"),
    SymbolFamily("warning sign", "public sign", "2620-2623 26A0 26A1"),
    SymbolFamily("recycling sign", "public sign", "2672 2673 267A-267E"),
    SymbolFamily("ballot mark", "public sign", "2611 2612 2713 2715 2717"),
    SymbolFamily("heart ornament", "ornament", "2763-2765"),
    SymbolFamily("quotation ornament", "ornament", "275B-275E 2761"),
    SymbolFamily("bracket", "ornament", "2768 2769 2774 2775 27E6-27EB"),
    SymbolFamily(
        "star",
        "star or asterisk",
        "2605 2606 2726 2727 2729-272D 272F 2730 2734-2736 2738 2739 2742",
    ),
    SymbolFamily(
        "asterisk",
        "star or asterisk",
        "203B 2042 2051 2722-2725 2731-2733 273A 273B 2743 2748-274B",
    ),
    SymbolFamily("musical sign", "music", "2669-266F"),
    SymbolFamily(
        "technical sign",
        "technical",
        "2305-2307 2311 2318 2324-2327 232B 237D 2387 2394 23CE 23CF",
    ),
    SymbolFamily("plain arrow", "arrow", "2190-2199"),
    SymbolFamily("arrow with a mark", "arrow", "219A 219B 219E-21A8 21AE 21B8 21B9 21E4 21E5 21F4"),
    SymbolFamily("bent arrow", "arrow", "219C 219D 21A9-21AC 21AF-21B7 21BA 21BB 2B0E-2B11"),
    SymbolFamily("harpoon", "arrow", "21BC-21C3 21CB 21CC"),
    SymbolFamily("pair of arrows", "arrow", "21C4-21CA 21F5 21F6"),
    SymbolFamily("double arrow", "arrow", "21D0-21DB 27F0 27F1"),
    SymbolFamily("dashed arrow", "arrow", "21E0-21E3"),
    SymbolFamily("broad arrow", "arrow", "21E6-21EB 21EE 21F0-21F3 2B00-2B03 2B05-2B0B"),
    SymbolFamily("dingbat arrow", "arrow", "279B 279F 27A2 27A4 27A9 27B2 27B4-27B6 27BA-27BC 27BE"),
    SymbolFamily(
        "set sign",
        "mathematics",
        "2205 2208 2209 220B 220C 2229 222A 2282-2289 228C 228F-2294 22D0 22D1 22D4 22F5 22F6",
        "sign",
    ),
    SymbolFamily(
        "logic sign",
        "mathematics",
        "2200-2204 2227 2228 2234 2235 22A2 22A5-22A9 22AC-22AF 22BA-22BD 22CE",
        "sign",
    ),
    SymbolFamily("integral", "mathematics", "222B-222E 2230 2A0C 2A12 2A14 2A17", "sign"),
    SymbolFamily(
        "operator",
        "mathematics",
        "B1 F7 2206 2207 220F 2211 2213-2215 221A 221D 221E 2238 223A 223B 22C7 22CB 22CC 29CE 29D1 29D2 "
        "29FB",
        "sign",
    ),
    SymbolFamily("angle", "mathematics", "221F-2222 22BE 22BF", "sign"),
    SymbolFamily("circled or squared operator", "mathematics", "2295-2297 229B 229C 229E 229F", "sign"),
    SymbolFamily("tilde or line sign", "mathematics", "2225 223C 223E-2243 2245 2247-224F 22D5", "sign"),
    SymbolFamily("equality sign", "mathematics", "2250-2253 2256 2257 2259-2263", "sign"),
    SymbolFamily(
        "order sign",
        "mathematics",
        "2264 2265 2268-226B 226E 226F 2276 227A-227D 22B0 22B1 22B4-22B8 22D8 22D9 22EE 22EF 22F1",
        "sign",
    ),
    SymbolFamily("number in a circle", "number", "2460-2468 2776-277E"),
    SymbolFamily("fraction", "number", "BC-BE 2153 2154 215B"),
    SymbolFamily(
        "punctuation mark",
        "writing sign",
        "A1 A7 AB B6 BB BF 2020 2021 203C 203D 2047-2049 204B 2052 2056-2059 205C",
    ),
    SymbolFamily(
        "abbreviation",
        "writing sign",
        "A9 AE 2030 2031 2100 2101 2103-2106 2109 2114 2116 2117 211E-2122 2125 213B 214B",
    ),
    SymbolFamily("currency sign", "writing sign", "A2-A5 20A0-20A3 20A5-20B4 20B8 20B9"),
    SymbolFamily(
        "script or blackletter letter",
        "letter",
        "2102 2107 210B-210E 2110-2113 2115 2118-211D 2124 2127 2128 212C-2131 2133 2135-2137 213D-2140",
    ),
    SymbolFamily(
        "greek letter",
        "letter",
        "393 398 39E 3A0 3A6 3A8 3A9 3B1-3B4 3B6-3B8 3BA-3BE 3C0-3C9 3D1 3D6 3E0",
    ),
    SymbolFamily(
        "cyrillic letter",
        "letter",
        "402 404 409-40B 411 414 416 417 419 41B 423 426-42B 42D-42F 431 444",
    ),
)

# Symbols that another font draws differently: with both drawings fitted to one box of 48 pixels, the
# correlation with DejaVu Sans is below 0.96. Ranges cover the symbols above only, not all of Unicode.
SANS_BOLD_DIFFERS = (
    "A1-2057 2059-211C 211E-2122 2125-212D 212F-2136 213B-213F 214B-219D 219F-21CC 21D4-2214 221A-2221 "
    "2225-2325 237D-2387 23CE 2460-2468 25D8 275B-275E 2776-277E 27E6-2B03 2B0E-2B11 "
)
STIX_DIFFERS = (
    "A1-203C 2047 2051-2052 2057 20A3 20A7 20AC 2102 2105 2107 210B-2113 2115-211E 2122-2137 213D-21EA "
    "21F4-22A2 22A6-2306 2308-2310 2318-2319 231D 232C 23CE 23E3-2468 25A3-25A9 25AF-25C5 25C8 25CB-25CE "
    "25D8-25DB 25EC-25EE 25F5-25F6 2606 2609 260C 260E 2612 2621 2639-2644 2646-2649 2660-2665 2667 "
    "2669-266B 266D-266F 267E 2680-2686 26A0 26A5 2702 2709 2720 279B 27E0-2A17 2B1A 2B54 "
)
SERIF_DIFFERS = (
    "203D-2042 2048-204B 20A6 20AF 20B1 20B4-20B9 2103 2109 21EB-21F3 22A5 2325 237D 2B00-2B03 2B0E-2B11 "
)

_PLAIN_WORDS = (
    (r"^playing card (?!back)|^n-ary |^vulgar |^mathematical |^dingbat (?!negative)", ""),
    (r"^domino tile horizontal back$", "back of a domino tile"),
    (r"^domino tile horizontal-0(\d)-0(\d)$", r"domino tile with \1 and \2 dots"),
    (r"^die face-(\d)$", r"die showing \1"),
    (r"^dingbat negative circled (.*)$", r"\1 in a solid circle"),
    (r"^circled (digit .*)$", r"\1 in a circle"),
    (r"\bblack\b(?!-letter| moon)", "solid"),
    (r"\bwhite\b", "hollow"),
    (r"\b(left|right|up|down)wards\b", r"\1"),
    (r"\blamda\b", "lambda"),
)


@cache
def all_symbols() -> tuple[Symbol, ...]:
    """Return every symbol of the corpus, family by family."""
    bold, stix, serif = (
        frozenset(parse_code_points(text)) for text in (SANS_BOLD_DIFFERS, STIX_DIFFERS, SERIF_DIFFERS)
    )
    symbols = []
    for family in FAMILIES:
        for code in parse_code_points(family.code_points):
            held_out = "stix" if code in stix else "serif" if code in serif else "engraved"
            fonts = ("sans", "bold") if code in bold else ("sans",)
            train = (*fonts, "shadow", "sticker", "outline", "wash", "halftone")
            symbols.append(_build_symbol(family, code, train, held_out))
    return tuple(symbols)


def parse_code_points(text: str) -> list[int]:
    """Return the code points in a list like "2190-2199 21AE"."""
    codes: list[int] = []
    for part in text.split():
        first, _, last = part.partition("-")
        codes.extend(range(int(first, 16), int(last or first, 16) + 1))
    return codes


def plain_name(char: str, noun: str = "") -> str:
    """Return a character's Unicode name in plain lower-case words.

    `noun` is appended, unless the name contains its last word already.
    """
    name = unicodedata.name(char).lower()
    for pattern, words in _PLAIN_WORDS:
        name = re.sub(pattern, words, name)
    last_word = noun.rpartition(" ")[2]
    return name if last_word in name.split() or not noun else f"{name} {noun}"


def _build_symbol(family: SymbolFamily, code: int, train: tuple[str, ...], held_out: str) -> Symbol:
    identifier = f"U+{code:04X}"
    return Symbol(
        id=identifier,
        char=chr(code),
        name=plain_name(chr(code), family.noun),
        parents=(family.name, family.group),
        train_styles=train,
        held_out_style=held_out,
        novel=_is_novel(identifier),
    )


def _is_novel(identifier: str) -> bool:
    # A hash, not a random draw: the same classes stay novel for every seed, size and later catalogue.
    digest = hashlib.sha256(identifier.encode()).digest()
    return int.from_bytes(digest[:4], "big") < NOVEL_SHARE * 2**32
