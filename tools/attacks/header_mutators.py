"""Ways to spoil the elements of a file before it is written; each takes its source of chance and returns a draft."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from random import Random

from attacks.byte_mutators import EXTREME_WORDS
from attacks.dicom_elements import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    HTJ2K,
    IMPLICIT,
    ITEM,
    ITEM_END,
    JPEG_2000,
    LONG_VRS,
    RLE,
    SEQUENCE_END,
    SHORT_VRS,
    SYNTAX_TAG,
    UNDEFINED,
    Element,
    even,
    order,
)
from attacks.plain_dicom import Draft, open_sequence

VRS = sorted(LONG_VRS | SHORT_VRS)
SYNTAXES = [IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN, RLE, JPEG_2000, HTJ2K, "1.2.840.10008.1.2.4.50", "1.2.3", ""]
ODD_TEXTS = [
    *(b"nan", b"NaN", b"inf", b"-inf", b"Infinity", b"1e400", b"-1e400", b"1e-400", b"1e5", b"-0", b"+1", b".5", b"5."),
    *(b"", b" ", b"\0", b"\0\0", b"abc", b"0x10", b"1,5", b"1_0", b"-1_024", b"1 0", b"1-2", b"--1", b"1e", b"e1"),
    *(b"\\", b"\\\\", b"1\\", b"\\1", b"1\\2", b"1\\2\\3", b"1\\2\\3\\4\\5\\6", b"1" * 400, b"0." + b"0" * 60 + b"1"),
    *("\uff11".encode(), "\u0661".encode(), b"\xa01", b"1\xa0", b"\xb2", b"\x1f1", b"\n1\n", b"1\x000", b"\xff\xfe"),
    *(b"../../etc", b"=cmd|' /C calc'!A0", b"<script>", b"\x1b[2J", b"2", b"12", b"16", b"0", b"1024", b"-1000"),
]
MAX_NESTED = 700

Change = Callable[[Draft, Random], Draft]


# ---- of elements


def _put(draft: Draft, at: int, *elements: Element, drop: int = 0) -> Draft:
    """Return a draft with elements put in at a place, after `drop` of those there are taken away."""
    return replace(draft, elements=(*draft.elements[:at], *elements, *draft.elements[at + drop :]))


def _pick(draft: Draft, rng: Random) -> tuple[int, Element]:
    at = rng.randrange(len(draft.elements))
    return at, draft.elements[at]


def _changed(draft: Draft, rng: Random, **values: object) -> Draft:
    at, element = _pick(draft, rng)
    return _put(draft, at, replace(element, **values), drop=1)


def _odd_text(rng: Random) -> bytes:
    text = rng.choice(ODD_TEXTS)
    return even(b"LO", text if rng.random() < 0.8 else rng.choice([b"\\", b"", b"  "]).join([text] * rng.randint(2, 6)))


def remove_element(draft: Draft, rng: Random) -> Draft:
    return _put(draft, rng.randrange(len(draft.elements)), drop=1)


def repeat_element(draft: Draft, rng: Random) -> Draft:
    _, element = _pick(draft, rng)
    return _put(draft, rng.randrange(len(draft.elements)), element)


def contradict_element(draft: Draft, rng: Random) -> Draft:
    """Let an element stand there a second time, with the value of another or an odd one."""
    (_, element), (_, other) = _pick(draft, rng), _pick(draft, rng)
    value = other.value if rng.random() < 0.5 else _odd_text(rng)
    return _put(draft, rng.randrange(len(draft.elements)), replace(element, value=value))


def move_element(draft: Draft, rng: Random) -> Draft:
    at, element = _pick(draft, rng)
    shorter = _put(draft, at, drop=1)
    return _put(shorter, rng.randrange(len(draft.elements)), element)


def shuffle_elements(draft: Draft, rng: Random) -> Draft:
    return replace(draft, elements=(*rng.sample(draft.elements[:-1], len(draft.elements) - 1), draft.elements[-1]))


def reverse_elements(draft: Draft, rng: Random) -> Draft:
    at = rng.randrange(len(draft.elements))
    return replace(draft, elements=draft.elements[:at] + draft.elements[at:][::-1])


def swap_vr(draft: Draft, rng: Random) -> Draft:
    return _changed(draft, rng, vr=rng.choice(VRS))


def unknown_vr(draft: Draft, rng: Random) -> Draft:
    return _changed(draft, rng, vr=rng.choice([b"XX", b"ZZ", b"us", b"\0\0", b"??", rng.randbytes(2)]))


def rename_tag(draft: Draft, rng: Random) -> Draft:
    return _changed(draft, rng, tag=rng.choice(draft.elements).tag)


def stray_tag(draft: Draft, rng: Random) -> Draft:
    at, element = _pick(draft, rng)
    near = element.tag ^ 1 << rng.randrange(32)
    return _put(draft, at, replace(element, tag=rng.choice([near, rng.getrandbits(32), element.tag | 0x10000])), drop=1)


def swap_values(draft: Draft, rng: Random) -> Draft:
    (here, one), (there, other) = _pick(draft, rng), _pick(draft, rng)
    return _put(
        _put(draft, here, replace(one, value=other.value), drop=1), there, replace(other, value=one.value), drop=1
    )


def odd_text(draft: Draft, rng: Random) -> Draft:
    return _changed(draft, rng, value=_odd_text(rng))


def odd_component(draft: Draft, rng: Random) -> Draft:
    """Put an odd text for one of several values."""
    at, element = _pick(draft, rng)
    words = element.value.split(b"\\")
    words[rng.randrange(len(words))] = rng.choice(ODD_TEXTS)
    return _put(draft, at, replace(element, value=even(b"LO", b"\\".join(words))), drop=1)


def other_count(draft: Draft, rng: Random) -> Draft:
    """Give an element one value more or less."""
    at, element = _pick(draft, rng)
    words = element.value.split(b"\\")
    words = words[1:] if rng.random() < 0.5 else [*words, rng.choice(words)]
    return _put(draft, at, replace(element, value=even(b"LO", b"\\".join(words))), drop=1)


def odd_bytes(draft: Draft, rng: Random) -> Draft:
    return _changed(draft, rng, value=rng.randbytes(rng.choice([0, 1, 2, 2, 2, 3, 4, 8])))


def odd_word(draft: Draft, rng: Random) -> Draft:
    """Put a plausible or an extreme number of two bytes."""
    number = rng.choice([0, 1, 2, 8, 11, 12, 15, 16, 17, 32, 0x3030, 0x3631, 0x7FFF, 0x8000, 0xFFFF])
    return _changed(draft, rng, value=struct.pack(f"{order(draft.syntax)}H", number))


def overlong_value(draft: Draft, rng: Random) -> Draft:
    at, element = _pick(draft, rng)
    return _put(draft, at, replace(element, value=element.value * rng.choice([2, 3, 100, 40_000])), drop=1)


def lie_about_length(draft: Draft, rng: Random) -> Draft:
    at, element = _pick(draft, rng)
    length = max(0, len(element.value) + rng.choice([-64, -8, -4, -2, -1, 1, 2, 4, 6, 8, 10, 12, 64, 300]))
    return _put(draft, at, replace(element, length=length), drop=1)


def extreme_length(draft: Draft, rng: Random) -> Draft:
    return _changed(draft, rng, length=rng.choice(EXTREME_WORDS))


def swap_value_bytes(draft: Draft, rng: Random) -> Draft:
    at, element = _pick(draft, rng)
    return _put(draft, at, replace(element, value=element.value[::-1]), drop=1)


def write_in_another_syntax(draft: Draft, rng: Random) -> Draft:
    """Write the elements in another byte order or with and without VRs, against what the file claims."""
    return replace(draft, syntax=rng.choice([IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED]))


def drop_one_vr(draft: Draft, rng: Random) -> Draft:
    return _changed(draft, rng, bare=True)


def hide_in_sequence(draft: Draft, rng: Random) -> Draft:
    """Move an element into a sequence, where it says nothing of the image."""
    at, element = _pick(draft, rng)
    return _put(draft, at, Element(0x00081140, b"SQ", open_sequence((element,), draft.syntax), UNDEFINED), drop=1)


def nested_double(draft: Draft, rng: Random) -> Draft:
    """Put in a sequence that holds an element of the same name, its length told, untold or wrong."""
    (at, element), (_, other) = _pick(draft, rng), _pick(draft, rng)
    value = open_sequence((replace(element, value=other.value),), draft.syntax, ended=rng.random() < 0.7)
    length = rng.choice([UNDEFINED, len(value), len(value) - 8, len(value) + 8, 0, 8])
    return _put(draft, at, Element(0x00081140, rng.choice([b"SQ", b"UN"]), value, length))


def nest_deeply(draft: Draft, rng: Random) -> Draft:
    value = b""
    for _ in range(rng.randint(2, MAX_NESTED)):
        value = open_sequence((Element(0x00081140, b"SQ", value, UNDEFINED),), draft.syntax)
    return _put(draft, rng.randrange(len(draft.elements)), Element(0x00081140, b"SQ", value, UNDEFINED))


def group_length(draft: Draft, rng: Random) -> Draft:
    """Put in a retired group length, which need not be true."""
    at, element = _pick(draft, rng)
    value = struct.pack(f"{order(draft.syntax)}I", rng.choice(EXTREME_WORDS))
    return _put(draft, at, Element(element.tag & 0xFFFF0000, b"UL", value))


def character_set(draft: Draft, rng: Random) -> Draft:
    names = [
        b"ISO_IR 192",
        b"ISO_IR 100",
        b"GB18030",
        b"ISO 2022 IR 87\\ISO 2022 IR 159",
        b"\\",
        b"no such",
        b"\xff\xff",
    ]
    value = even(b"CS", rng.choice(names))
    return _put(draft, rng.randrange(len(draft.elements)), Element(0x00080005, b"CS", value))


def private_element(draft: Draft, rng: Random) -> Draft:
    tag = rng.choice([0x00090010, 0x00091001, 0x00291010, 0x7FE10010, 0x00010001, 0xFFFCFFFC])
    element = Element(tag, rng.choice(VRS), rng.randbytes(rng.randrange(0, 40)))
    return _put(draft, rng.randrange(len(draft.elements)), element)


def stray_delimiter(draft: Draft, rng: Random) -> Draft:
    tag = rng.choice([ITEM, ITEM_END, SEQUENCE_END])
    return _put(draft, rng.randrange(len(draft.elements)), Element(tag, b"", b"", rng.choice([0, 8, UNDEFINED]), True))


# ---- of the file's head


def other_syntax(draft: Draft, rng: Random) -> Draft:
    """Let the file claim a transfer syntax in which it is not written."""
    claimed = Element(SYNTAX_TAG, b"UI", even(b"UI", rng.choice(SYNTAXES).encode()))
    return replace(draft, meta=(*draft.meta[:-1], claimed))


def spoil_meta(draft: Draft, rng: Random) -> Draft:
    """Spoil the meta elements as if they were the data set's."""
    change = rng.choice([remove_element, contradict_element, move_element, swap_vr, odd_text, lie_about_length])
    return replace(draft, meta=change(replace(draft, syntax=EXPLICIT, elements=draft.meta), rng).elements)


def lie_about_meta_length(draft: Draft, rng: Random) -> Draft:
    return replace(draft, meta_length_lie=rng.choice([-200, -8, -1, 1, 2, 8, 1000, 0x7FFFFFFF]))


def spoil_preamble(draft: Draft, rng: Random) -> Draft:
    cut = draft.preamble[rng.randrange(133) :]
    return replace(draft, preamble=rng.choice([b"", cut, draft.preamble[:128], b"MZ" + draft.preamble[2:], b"DICM"]))


DRAFT_CHANGES: tuple[Change, ...] = (
    *(remove_element, repeat_element, contradict_element, move_element, shuffle_elements, reverse_elements),
    *(swap_vr, unknown_vr, rename_tag, stray_tag, swap_values, odd_text, odd_component, other_count, odd_bytes),
    *(odd_word, overlong_value, lie_about_length, extreme_length, swap_value_bytes, write_in_another_syntax),
    *(drop_one_vr, hide_in_sequence, nested_double, nest_deeply, group_length, character_set, private_element),
    *(stray_delimiter, other_syntax, spoil_meta, lie_about_meta_length, spoil_preamble),
)
