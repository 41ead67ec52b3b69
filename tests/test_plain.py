import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from astra_trl.text import visible

EVERY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


def test_what_acts_on_its_surroundings_is_named_instead():
    for text, shown in (
        ("\x1b[31mred\x1b[0m", "⟨U+001B⟩[31mred⟨U+001B⟩[0m"),
        ("\x1b]8;;http://a\x07link", "⟨U+001B⟩]8;;http://a⟨U+0007⟩link"),
        ("a\u202egpj.exe", "a⟨U+202E⟩gpj.exe"),
        ("pass\u200bword\ufeff", "pass⟨U+200B⟩word⟨U+FEFF⟩"),
        ("\U000e0041hidden", "⟨U+E0041⟩hidden"),
        ("bell\a back\b\r over", "bell⟨U+0007⟩ back⟨U+0008⟩⟨U+000D⟩ over"),
        ("half \ud83d", "half ⟨U+D83D⟩"),
        ("line\u2028end", "line⟨U+2028⟩end"),
        ("blank\u3164letter", "blank⟨U+3164⟩letter"),
        ("\x9b1m", "⟨U+009B⟩1m"),
    ):
        assert visible(text) == shown


def test_what_people_write_stays_as_it_is():
    for text in ("plain", "two\nlines\tand a tab", "naïve Ω 日本語 שלום سلام", "👍🏽 ❤️", "a <b> & c", ""):
        assert visible(text) == text


@given(EVERY_TEXT)
def test_nothing_that_acts_is_left_in_any_text(text):
    for char in visible(text):
        assert char in "\n\t\u00ad" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    visible(text).encode()
