"""The attack by hostile text: it finds nothing in the package, and everything in a package that escapes nothing."""

from __future__ import annotations

import pytest
from attacks import injections, sinks
from attacks.payloads import MARKUP, PAYLOADS, TEMPLATES

pytest_plugins = ["grounds", "browser"]

QUICK, LOOKED_AT = 0.005, 5
MARKED = tuple(payload for payload in PAYLOADS if payload.name in MARKUP or payload.name in TEMPLATES)


@pytest.fixture
def attack(monkeypatch, tmp_path, scene, zygote):
    """Run the attack at a scale with some payloads, on a weakened package if asked for; gives its outcome."""

    def attack(scale=QUICK, payloads=PAYLOADS, weakness="", seed=0):
        monkeypatch.setattr(injections, "PAYLOADS", tuple(payloads))
        monkeypatch.setattr(zygote, "weakness", weakness)
        if payloads is not PAYLOADS:
            monkeypatch.setattr(injections, "LEAST_PAYLOADS", len(payloads))
        return injections.run(tmp_path / "attack", scene=scene, zygote=zygote, scale=scale, seed=seed)

    return attack


def active(seen):
    """Return what a page did that is none of a page that only shows."""
    return [*seen.dialogs, *seen.requests, *seen.console, *["a script"] * seen.scripts]


def test_there_are_sixty_payloads_of_names_and_file_names_of_their_own():
    """None is another one once it is a file's name, and all are names that a file may have."""
    assert len(PAYLOADS) == len({payload.name for payload in PAYLOADS}) == 60
    assert len({payload.file_name for payload in PAYLOADS}) == 60
    assert not [payload for payload in PAYLOADS if set("/\0") & set(payload.file_name)]


@pytest.mark.slow
def test_a_slice_of_the_attack_finds_nothing(attack):
    """A folder of hostile files predicted, and some texts refused."""
    outcome = attack()
    assert outcome.failures == ()
    assert outcome.trials > 50
    assert outcome.figures["pages"] > injections.LEAST_PAYLOADS


@pytest.mark.slow
def test_every_command_on_hostile_input_leaves_nothing_active(attack):
    """On all commands, with few payloads."""
    assert (
        attack(1.0, [p for p in PAYLOADS if p.name in ("script", "formula", "line", "title", "bidi", "tab")]).failures
        == ()
    )


@pytest.mark.slow
def test_a_package_that_escapes_nothing_is_found_out(attack):
    """The control: markup becomes tags."""
    failures = attack(payloads=MARKED[:6], weakness="escape_nothing").failures
    assert any("a tag <script>" in failure for failure in failures)
    assert any("onerror=" in failure for failure in failures)


@pytest.mark.slow
def test_a_package_that_repeats_what_it_is_told_is_found_out(attack):
    """The control of the terminal: escape sequences and forged lines reach it."""
    chosen = [payload for payload in PAYLOADS if payload.name in ("title", "line", "bidi", "backspaces", "tab", "link")]
    failures = attack(payloads=chosen, weakness="repeat_arguments").failures
    assert any("stderr: letters U+0007, U+001B" in failure for failure in failures)


@pytest.mark.slow
def test_no_page_runs_what_is_planted(attack, browser, tmp_path):
    """In a browser no alert is opened, nothing is asked for and nothing is said; no policy had to step in."""
    attack(payloads=MARKED)
    pages = sorted((tmp_path / "attack" / "made" / "predict").rglob("*.html"))
    assert len(pages) > len(MARKED)
    for page in [next(page for page in pages if page.name == "report.html"), *pages[:LOOKED_AT]]:
        assert not active(browser.look(page)), page


@pytest.mark.slow
def test_pages_that_escape_nothing_open_alerts(attack, browser, tmp_path):
    """The control: less the escaping and the policy, the canary fires."""
    attack(payloads=MARKED[:6], weakness="escape_nothing")
    fired = set()
    for page in (tmp_path / "attack" / "made" / "predict" / "report").glob("*.html"):
        page.write_text(page.read_text().replace("Content-Security-Policy", "none"))
        fired |= {*browser.look(page).dialogs}
    assert "canary" in fired


@pytest.mark.slow
def test_no_page_of_other_commands_runs_what_is_planted(attack, browser, tmp_path):
    """Of explore, evaluate and the card."""
    attack(0.4, MARKED)
    pages = [page for page in (tmp_path / "attack" / "made").rglob("*.html") if page.parent.name != "report"]
    assert {page.name for page in pages} == {"report.html", "exploration.html", "evaluation.html", "card.html"}
    for page in pages:
        assert not active(browser.look(page)), page


FORGED = "\x1b]0;title\x07"
FAULTY = {
    "a script": (sinks.page_faults, "<script>x</script>"),
    "a handler": (sinks.page_faults, '<p onclick="x">'),
    "an address": (sinks.page_faults, '<a href="javascript:x">'),
    "a far picture": (sinks.page_faults, '<img src="http://127.0.0.1/x.png">'),
    "a style's address": (sinks.page_faults, '<p style="background:url(x)">'),
    "a style": (sinks.page_faults, "<style>p { color: red }</style>"),
    "a frame": (sinks.page_faults, "<iframe>"),
    "another policy": (sinks.page_faults, '<meta http-equiv="refresh" content="0">'),
    "a computed template": (sinks.page_faults, "1127053"),
    "a control on a page": (sinks.page_faults, "\x1b"),
    "a formula": (sinks.table_faults, "a,b\n1,=1\n"),
    "a formula in a head": (sinks.table_faults, "a,@b\n1,2\n"),
    "a short row": (sinks.table_faults, "a,b\n1\n"),
    "two lines in a cell": (sinks.table_faults, 'a,b\n1,"2\n3"\n'),
    "a control in a cell": (sinks.table_faults, "a,b\n1,\x1b\n"),
    "no JSON": (sinks.json_faults, "{'a': 1}"),
    "no number": (sinks.json_faults, '{"a": NaN}'),
    "a control in JSON": (sinks.json_faults, '{"a": "\x9b"}'),
    "no JSON in a line": (sinks.lines_faults, "{}\n{\n"),
}
SOUND = {
    "a table": (sinks.table_faults, "a,b\n1,-2.5e-3\n'=1,2\n"),
    "an empty journal": (sinks.lines_faults, ""),
    "a journal": (sinks.lines_faults, '{"a": 1}\n{"a": "\\u001b"}\n'),
}


@pytest.mark.parametrize(("check", "text"), FAULTY.values(), ids=FAULTY)
def test_a_fault_is_told(check, text):
    """Each of what is unwanted, by itself; a page's fault comes beside that of the policy it lacks."""
    assert [fault for fault in check(text.encode()) if "content policies" not in fault]


@pytest.mark.parametrize(("check", "text"), SOUND.values(), ids=SOUND)
def test_what_is_sound_is_called_so(check, text):
    """No false alarm."""
    assert not [*check(text.encode())]


@pytest.mark.parametrize("text", [FORGED, "\u202eabc", "a\r", "FORGED line", "\ufffd", "\x9b1m"])
def test_what_a_terminal_must_not_be_sent_is_told(text):
    """Escapes, turned text, carriage returns, forged lines and bytes that are none."""
    assert [*sinks.terminal_faults(f"sound\n{text}\n")]
    assert not [*sinks.terminal_faults("sound: 5 of 5, \u00e4\n")]
