"""Which language a text is in, told by its letters and, among languages that share a script, by small words.

No model and no download: enough to say whether an answer is in the language that was asked for. A short text without
any small word counts as being in every language of its script.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache

MAJORITY = 0.5
"""A text is in a script when more than this share of its letters is."""

SCRIPTS: dict[str, tuple[str, ...]] = {
    "Latin": ("LATIN",), "Cyrillic": ("CYRILLIC",), "Greek": ("GREEK",), "Arabic": ("ARABIC",), "Hebrew": ("HEBREW",),
    "Devanagari": ("DEVANAGARI",), "Bengali": ("BENGALI",), "Gurmukhi": ("GURMUKHI",), "Gujarati": ("GUJARATI",),
    "Tamil": ("TAMIL",), "Telugu": ("TELUGU",), "Kannada": ("KANNADA",), "Malayalam": ("MALAYALAM",),
    "Thai": ("THAI",), "Hangul": ("HANGUL",), "Kana": ("HIRAGANA", "KATAKANA"), "Han": ("CJK",),
    "Georgian": ("GEORGIAN",), "Armenian": ("ARMENIAN",),
}  # fmt: skip
"""Script → how Unicode's names of its letters begin."""

LANGUAGES: dict[str, tuple[str, str]] = {
    "en": ("Latin", "the of and to in is that it for was on are with as be this by have from not you at or an"),
    "de": ("Latin", "der die und das ist nicht ein eine den mit von zu auf für sich des dem im als auch es wird"),
    "fr": ("Latin", "le la les des et est une un dans que qui pour pas sur au avec ce par sont plus du il elle"),
    "es": ("Latin", "el la los las que y en un una es por con para del se no lo más como su al pero"),
    "it": ("Latin", "il la che di e un una per non è con del della sono gli nel alla più anche come questo"),
    "pt": ("Latin", "o a os que e de um uma para com não em do da no na por mais como se é ao"),
    "nl": ("Latin", "de het een en van is dat niet op te zijn voor met die aan er ook als bij"),
    "pl": ("Latin", "i w nie na się z że do to jest jak o ale po co przez od są dla"),
    "cs": ("Latin", "a v je se na že to s z do o ale jako pro by jsou nebo který při"),
    "sv": ("Latin", "och att det är som en på i för av med den inte till har ett om"),
    "fi": ("Latin", "ja on ei se että oli hän ovat mutta kun niin myös tai joka ole kanssa"),
    "tr": ("Latin", "ve bir bu için ile da de çok gibi daha olan olarak ne ama var değil"),
    "vi": ("Latin", "và là của có không các được cho một trong người này với để những khi"),
    "sw": ("Latin", "na ya wa kwa ni katika za la kuwa hii cha watu kama lakini yake"),
    "id": ("Latin", "yang dan di dengan untuk dari ini itu pada adalah tidak dalam akan ke"),
    "ru": ("Cyrillic", "и в не на что с он как это по но из у за от она так для же вы мы бы был то все"),
    "uk": ("Cyrillic", "і в не на що з та як це до але від за він у для є ми ви був його або"),
    "bg": ("Cyrillic", "и на в да се е не за от с са като това но ще по той си до или със"),
    "sr": ("Cyrillic", "и у је да се на за не су од са као то што али би који или"),
    "ar": ("Arabic", "في من على إلى أن هذا التي الذي كان مع عن هو هي ما لا"),
    "fa": ("Arabic", "و در به از که این را با است برای آن یک خود هم می‌شود"),
    "ur": ("Arabic", "کے کی میں ہے اور کو سے کا پر یہ نے کہ ہیں اس ایک"),
    "hi": ("Devanagari", "के में है की और का को से यह एक पर नहीं हैं कि भी"),
    "mr": ("Devanagari", "आहे आणि या हे च्या ते मध्ये एक नाही आहेत ही होते"),
    "ne": ("Devanagari", "छ र को मा यो हो गर्न पनि लाई छन् एक थियो भने"),
    "zh": ("Han", ""), "ja": ("Kana", ""), "ko": ("Hangul", ""), "el": ("Greek", ""), "he": ("Hebrew", ""),
    "bn": ("Bengali", ""), "pa": ("Gurmukhi", ""), "gu": ("Gujarati", ""), "ta": ("Tamil", ""),
    "te": ("Telugu", ""), "kn": ("Kannada", ""), "ml": ("Malayalam", ""), "th": ("Thai", ""), "ka": ("Georgian", ""),
    "hy": ("Armenian", ""),
}  # fmt: skip
"""Code (ISO 639-1) → script, and its small words; none where the script is the language's own."""

_WORD = re.compile(r"[^\W\d_]+(?:[\u200c'’][^\W\d_]+)*")


def scripts_of(text: str) -> Counter[str]:
    """Script → letters of the text in it; letters of no known script count as `other`."""
    return Counter(_script(letter) for letter in text if letter.isalpha())


def in_script(text: str, script: str, share: float = MAJORITY) -> bool:
    """Whether more than `share` of the letters are of a script; with share 1: all of them. Japanese writes Han letters
    among its own, and so counts as Kana."""
    found = scripts_of(text)
    if script == "Kana" and found["Kana"]:
        found["Kana"] += found.pop("Han", 0)
    total = sum(found.values())
    if not total:
        return False
    return found[script] == total if share >= 1 else found[script] > share * total


def in_language(text: str, code: str) -> bool:
    """Whether a text is in a language: in its script, and with at least as many of its small words as of those of any
    other language in that script. Raises KeyError for a code that is not in LANGUAGES."""
    script, own = LANGUAGES[code]
    if not in_script(text, script) or (code == "zh" and scripts_of(text)["Kana"]):
        return False
    if not own:
        return True
    counts = Counter(word.casefold() for word in _WORD.findall(text))
    marks = {
        other: sum(counts[word] for word in small.split()) for other, (its, small) in LANGUAGES.items() if its == script
    }
    return marks[code] == max(marks.values())


@cache
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "")
    return next((script for script, starts in SCRIPTS.items() if name.startswith(starts)), "other")
