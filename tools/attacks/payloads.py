"""Sixty texts that do harm where text is taken for markup, a formula, a command of the terminal or a path.

They ask for nothing but to be noticed: scripts call alert, addresses are of a port that answers nobody, forged lines
begin with FORGED, templates and formulas multiply two numbers whose product is found nowhere else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

ADDRESS = "http://127.0.0.1:9/canary"
"""Browsers refuse this port."""

FORGED = "FORGED"
PRODUCT = 1117 * 1009
ALERT = "alert('canary')"
SUM = "{{1117*1009}}"
MAX_NAME_BYTES = 200


@dataclass(frozen=True, slots=True)
class Payload:
    """A text by name, as bytes: some are no UTF-8."""

    name: str
    data: bytes

    @property
    def text(self) -> str:
        """Return it as Python has it, bytes that are no UTF-8 as lone surrogates."""
        return self.data.decode("utf-8", "surrogateescape")

    @property
    def file_name(self) -> str:
        """Return it as a file may be called: without slash and NUL, not too long, no `.` and no `..`."""
        plain = self.data.replace(b"/", b"\\").replace(b"\0", b"")[:MAX_NAME_BYTES]
        return os.fsdecode(plain if plain.strip(b".") else plain + b"_")

    @property
    def argument(self) -> str:
        """Return it as an argument of a process, which ends at a NUL, and may be 128 KiB long."""
        return self.text.replace("\0", "")

    @property
    def sound(self) -> bool:
        """Return whether it is UTF-8 and holds no NUL, as a text file must."""
        return b"\0" not in self.data and not any("\ud800" <= letter <= "\udfff" for letter in self.text)


MARKUP = {
    "script": f"<script>{ALERT}</script>",
    "script out of an attribute": f'"><script>{ALERT}</script>',
    "script out of a title": f"</title></style></textarea><script>{ALERT}</script>",
    "script in a comment": f"<!--><script>{ALERT}</script>-->",
    "picture that fails": f'\'><img src=x onerror="{ALERT}">',
    "picture out of a table": f'</td></tr></table><img src="{ADDRESS}" onerror="{ALERT}">',
    "svg that loads": f'<svg onload="{ALERT}">',
    "svg with a script": f"<svg><script>{ALERT}</script></svg>",
    "handler in double quotes": f'" onmouseover="{ALERT}" x="',
    "handler in single quotes": "' autofocus onfocus='alert(1)' x='",
    "handler without quotes": "x onmouseover=alert(1) y",
    "frame": f'<iframe srcdoc="<script>parent.{ALERT}</script>"></iframe>',
    "object": f'<object data="data:text/html,<script>{ALERT}</script>"></object>',
    "refresh": f'<meta http-equiv="refresh" content="0;url={ADDRESS}">',
    "base": f'<base href="{ADDRESS}/">',
    "form": f'<form action="{ADDRESS}"><button autofocus>go</button></form>',
    "link that runs": f'<a href="javascript:{ALERT}">report</a>',
    "javascript address": f"javascript:{ALERT}",
    "data address": f"data:text/html,<script>{ALERT}</script>",
    "style": f"</style><style>*{{background:url({ADDRESS})}}</style>",
    "style of an attribute": f"x;background:url({ADDRESS})",
    "imported style": f'<style>@import "{ADDRESS}";</style>',
}
TEMPLATES = {
    "template sum": SUM,
    "template classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "template block": "{% for x in (1, 2) %}{{ 1117*1009 }}{% endfor %}",
    "template comment": "{# FORGED",
    "shell sum": "$((1117*1009)) `id` ${1117*1009}",
    "format strings": "%(canary)s %s %n {0} {canary!r}",
}
ENCODINGS = {
    "named entities": f"&lt;script&gt;{ALERT}&lt;/script&gt;",
    "numbered entities": "&#60;script&#62;alert(1)&#60;/script&#62;",
    "percent": "%3Cscript%3Ealert(1)%3C%2Fscript%3E",
    "UTF-7": f"+ADw-script+AD4-{ALERT}+ADw-/script+AD4-",
    "full width": f"\uff1cscript\uff1e{ALERT}\uff1c/script\uff1e",
    "NUL in a tag": "<scr\0ipt>alert(1)</scr\0ipt>",
    "quotes alike": f"\u02ba onmouseover=\u02ba{ALERT}\u02ba \uff02>\u2033",
    "JSON": '","canary":{"x":1},"y":"\\',
}
FORMULAS = {
    "formula": "=1117*1009",
    "formula that calls": "=cmd|' /C calc'!A0",
    "plus": "+cmd|' /C calc'!A0",
    "minus": "-2+3+cmd|' /C calc'!A0",
    "at": "@SUM(1117*1009)*cmd|' /C calc'!A0",
    "tab": "\t=SUM(1117*1009)",
    "carriage return": "\r=PRODUCT(1117,1009)",
    "formula that links": f'=HYPERLINK("{ADDRESS}","report")',
    "formula out of a cell": 'x","=1117*1009","y',
    "semicolons": "x;=1117*1009;y",
}
TERMINAL = {
    "line": "x\nFORGED: all files used",
    "carriage return and line": "x\r\nFORGED,rejected,decode",
    "other line ends": "x\u2028FORGED\u2029FORGED\x0bFORGED\x0cFORGED\x85FORGED",
    "colour and erased screen": "\x1b[2J\x1b[31mFORGED",
    "title": "\x1b]0;FORGED\x07",
    "clipboard": "\x1b]52;c;Rk9SR0VE\x07",
    "link": f"\x1b]8;;{ADDRESS}\x1b\\report\x1b]8;;\x1b\\",
    "control in one letter": "\x9b31mFORGED\x9d0;FORGED\x9c",
    "backspaces": "ok\x08\x08FORGED\x7f",
    "bidi": "\u202egnp.exe\u202c \u2066FORGED\u2069\u200f",
}
OTHERS = {
    "path upwards": "../../../FORGED",
    "option": "--out=FORGED",
    "very long": "<b>" + 20_000 * "AZ ",
}
BYTES = {"no UTF-8": b"\xff\xfe<script>alert(1)</script>\xc0\xbcb\xc0\xbe\xed\xa0\x80"}

TEXTS = MARKUP | TEMPLATES | ENCODINGS | FORMULAS | TERMINAL | OTHERS
PAYLOADS = (
    *(Payload(name, text.encode()) for name, text in TEXTS.items()),
    *(Payload(*item) for item in BYTES.items()),
)
