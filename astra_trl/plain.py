"""Text of models made safe to show: nothing in it acts on a terminal, a page or the text around it."""

import unicodedata

# Format characters that reorder, join, hide or tag text; soft hyphens and variation selectors of emoji are harmless.
_HARMLESS = {"\n", "\t", "\u00ad"}
_INVISIBLE = {"\u115f", "\u1160", "\u2800", "\u3164", "\uffa0"}  # letters by their category, blank on the screen


def visible(text: str) -> str:
    """The text with control, format and other invisible characters named, as `⟨U+202E⟩`; new lines and tabs stay.

    That takes the effect from ANSI escapes, bidirectional overrides, zero-width characters, tags and broken
    surrogates, and lets a reader see that they are there.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"⟨U+{ord(char):04X}⟩" if _acts(char) else char for char in text)


def _acts(char: str) -> bool:
    if char in _HARMLESS:
        return False
    # Cc, Cf, Cs, Co, Cn: controls, formats, half surrogates, private and unassigned; Zl, Zp: line ends of their own.
    category = unicodedata.category(char)
    return category[0] == "C" or category in ("Zl", "Zp") or char in _INVISIBLE
