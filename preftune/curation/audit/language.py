"""Which language a text is in, by its script and its commonest words. Small, and honest: it often says nothing.

Scripts of one language (Greek, Thai, Korean, …) decide at once. Among the languages of the Latin, Cyrillic and Arabic
scripts the words decide that hardly any sentence does without: a language must have more different ones of them than
any other, two at least (three in longer texts), and one in twelve of the text's words. A name, a number, a line of code
or a text of three words is in no language; nor, mostly, is one in a language that is not in the table. Of long texts
the beginning is read. Tested: tests/curation/test_audit_text.py.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

from preftune.curation.audit.texts import words

READ = 2000
"""Characters of a text that are read."""
SAID = 300
"""Words of it that are looked up."""
LEAST, SHORT = 2, 20
"""Different common words that a text must hold, one more where it has more words than SHORT."""
SHARE = 1 / 12
"""Of its words; fewer are a quotation."""
SYMBOLS = 0.1
"""Share of characters that only programs and formulas have, above which a text is one."""

NAMES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "pt": "Portuguese", "it": "Italian",
    "nl": "Dutch", "sv": "Swedish", "da": "Danish", "no": "Norwegian", "fi": "Finnish", "pl": "Polish", "cs": "Czech",
    "sk": "Slovak", "ro": "Romanian", "hu": "Hungarian", "tr": "Turkish", "vi": "Vietnamese", "id": "Indonesian",
    "hr": "Croatian", "ru": "Russian", "uk": "Ukrainian", "bg": "Bulgarian", "sr": "Serbian", "be": "Belarusian",
    "ar": "Arabic", "fa": "Persian", "ur": "Urdu", "zh": "Chinese", "ja": "Japanese", "ko": "Korean", "el": "Greek",
    "he": "Hebrew", "th": "Thai", "hi": "Hindi or another in Devanagari", "bn": "Bengali", "ta": "Tamil",
    "te": "Telugu", "kn": "Kannada", "ml": "Malayalam", "gu": "Gujarati", "pa": "Punjabi", "si": "Sinhala",
    "km": "Khmer", "lo": "Lao", "my": "Burmese", "am": "Amharic", "hy": "Armenian", "ka": "Georgian", "bo": "Tibetan",
}  # fmt: skip

_ALONE = {
    "GREEK": "el", "HEBREW": "he", "THAI": "th", "DEVANAGARI": "hi", "BENGALI": "bn", "TAMIL": "ta", "TELUGU": "te",
    "KANNADA": "kn", "MALAYALAM": "ml", "GUJARATI": "gu", "GURMUKHI": "pa", "SINHALA": "si", "KHMER": "km",
    "LAO": "lo", "MYANMAR": "my", "ETHIOPIC": "am", "ARMENIAN": "hy", "GEORGIAN": "ka", "TIBETAN": "bo",
    "HANGUL": "ko", "HIRAGANA": "ja", "KATAKANA": "ja", "CJK": "zh",
}  # fmt: skip
"""Scripts that tell the language, by the first word of their characters' names."""

_COMMON = {
    "en": "the of and to in is that it for was on are with as be this have from or an by not but what you they were "
          "which when how can will there his her their if my your do does would about per he she so has had i we me "
          "all one more then than into out up some them no who been many much each first",
    "de": "der die das und ist nicht ein eine zu den mit sich auf für dem des von im auch es an werden aus er sie wie "
          "wir ich war hat wird bei einen oder was kann noch nach einer wenn nur über aber du sind",
    "fr": "le la les de des et est un une du en dans que qui pour pas sur au avec ce il elle sont par plus ne se vous "
          "nous je mais ou comme cette aux être son ses leur quelle quel comment c'est où",
    "es": "el la los las de que y en un una es por con para no se del al lo como más pero su sus le ha este esta son "
          "fue está muy cuál qué cómo dónde también hay ser",
    "pt": "o a os as de que e em um uma é por com para não se do da dos das no na ao mais mas seu sua foi está são "
          "como ele ela você qual também isso ser",
    "it": "il lo la gli le di che e è un una per con non si del della dei delle in al alla come più ma sono nel nella "
          "anche questo questa qual quale cosa ha essere dove",
    "nl": "de het een en van is dat die in te niet op zijn voor met aan er om ook als maar door bij wat naar hij ze "
          "wordt dit deze kan nog uit hoe ik je heeft hebben",
    "sv": "och att det som en är av för på med den inte till har om ett var jag men kan så vi från eller vad hur ska "
          "detta också när",
    "da": "og at det er en af til på med den for ikke der som har de et jeg var kan om vi fra eller hvad hvordan blev "
          "også når efter mig",
    "no": "og at det er en av til på med den for ikke som har de et jeg var kan om vi fra eller hva hvordan ble også "
          "når etter meg",
    "fi": "ja on ei se että hän oli mutta ovat joka kun myös mitä olla kuin tai niin sen hänen mikä tämä ne minä voi "
          "jos siitä",
    "pl": "i w nie na się z do jest to że o jak ale za co po od czy tak dla jego są przez być jej tego może który "
          "która które też",
    "cs": "a se v na je že to s z do o ve jako pro jsou ale by po jeho od si byl nebo které který která také jsem co "
          "být není",
    "sk": "a sa v na je že to s z do o vo ako pre sú ale by po jeho od si bol alebo ktoré ktorý ktorá tiež som čo byť "
          "nie",
    "ro": "și de în la cu nu este pe o un care să din că mai ce a al ale pentru sunt sau lui au fost dar prin cum era "
          "acest această",
    "hu": "a az és hogy nem is egy van ez de meg volt mint csak már azt el ki még be vagy lehet mi nagyon amely ha "
          "hogyan",
    "tr": "ve bir bu da de için ile çok ne mi daha gibi olarak var en ama kadar o olan değil sonra ben nasıl veya her "
          "ki",
    "vi": "và của là có không một các cho được trong với những này đã người để khi về tôi như từ nhưng cũng đó thì nào",
    "id": "yang dan di dari untuk dengan ini itu pada tidak adalah ke dalam akan juga oleh saya atau sebagai apa kita "
          "bisa ada mereka",
    "hr": "i je u na da se za su od s ne o kao što to koji koja koje iz ali bi ili će sam kako nije može te biti",
    "ru": "и в не на что я с он как это по но она из у за к от так же для вы бы о был мы все его есть или если то "
          "чтобы который где",
    "uk": "і в не на що я з він як це по але вона із у за до від так же для ви б о був ми всі його є або якщо та щоб "
          "який де",
    "bg": "и в не на че аз с той как това по но тя от за до е са се да ще ли който беше или има как къде",
    "sr": "и у не на да ја с он како то по али она из за од је су се би или ће није који шта може бити као",
    "be": "і ў не на што я з ён як гэта па але яна з у за да ад так для вы б быў мы усе яго ёсць або калі каб які дзе",
    "ar": "في من على أن إلى هذا ما هو التي الذي عن لا مع هل كان هذه أو كما و قد كل ذلك بين هي",
    "fa": "و در به از که این را با است برای آن یک می ها تا بر هم شود خود چه یا ما شده کرد",
    "ur": "کے میں کی ہے کا اور سے کو نے پر یہ کہ ہیں اس نہیں بھی ایک تھا وہ کیا ہو جو",
}  # fmt: skip
_LANGUAGES = {
    "LATIN": (*("en", "de", "fr", "es", "pt", "it", "nl", "sv", "da", "no", "fi", "pl", "cs", "sk", "ro", "hu", "tr"),
              *("vi", "id", "hr")),
    "CYRILLIC": ("ru", "uk", "bg", "sr", "be"),
    "ARABIC": ("ar", "fa", "ur"),
}  # fmt: skip
_TELLING = {
    "uk": "їєґ", "be": "ў", "sr": "јљњћђџ", "ru": "ыэё", "fa": "پچژگ", "ur": "ٹڈڑےں", "ro": "șțăâ", "pl": "łśźżćńąę",
    "cs": "řěů", "sk": "ľĺŕ", "hu": "őű", "tr": "ığş", "vi": "ơưđạảấầẩậắằặẹẻẽếềểệ", "de": "ß", "pt": "ãõ", "es": "ñ¿¡",
    "sv": "å", "da": "æø", "no": "æø",
}  # fmt: skip
"""Letters that few others have; each kind of letter that occurs counts as one common word."""

_CLOSE = (frozenset({"da", "no", "sv"}), frozenset({"cs", "sk"}), frozenset({"ru", "uk", "be", "bg", "sr"}),
          frozenset({"sr", "hr"}), frozenset({"es", "pt", "it"}))  # fmt: skip
"""Languages that share so many words that a short text may be taken for its neighbour."""
_FENCE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.DOTALL)
_SYMBOL = re.compile(r"[{}()\[\]<>=;_\\$#*/+|&^%@~]")


def _owners() -> dict[str, dict[str, tuple[str, ...]]]:
    """Script → common word → the languages that have it."""
    out: dict[str, dict[str, tuple[str, ...]]] = {}
    for script, languages in _LANGUAGES.items():
        table: dict[str, tuple[str, ...]] = {}
        for language in languages:
            for word in _COMMON[language].split():
                table[word] = (*table.get(word, ()), language)
        out[script] = table
    return out


_OWNERS = _owners()


def language(text: str, known: Sequence[str] | None = None) -> str:
    """The language's two letters, "" where nothing tells.

    Args:
        known: the text's words, where they are at hand; not read where some of the text is code.
    """
    beginning = text[:READ]
    plain = _FENCE.sub(" ", beginning) if "`" in beginning or "://" in beginning else beginning
    if len(_SYMBOL.findall(plain)) > SYMBOLS * max(1, len(plain)):
        return ""
    script = _script(plain)
    if script in _ALONE:
        return _ALONE[script]
    if script not in _LANGUAGES:
        return ""
    said = known[:SAID] if known is not None and plain is beginning else words(plain)[:SAID]
    return _by_words(script, said, plain)


def differ(one: str, other: str) -> bool:
    """Whether two texts are surely in different languages."""
    return bool(one) and bool(other) and one != other and not any({one, other} <= close for close in _CLOSE)


def _by_words(script: str, said: Sequence[str], text: str) -> str:
    """Each common word counts once: one that many languages have may stand in every line of a text."""
    owners, votes, spoken = _OWNERS[script], Counter[str](), Counter[str]()
    for word, times in Counter(said).items():
        for name in owners.get(word, ()):
            votes[name] += 1
            spoken[name] += times
    if not text.isascii():
        letters = set(text.lower())
        for name in _LANGUAGES[script]:
            found = len(letters.intersection(_TELLING.get(name, "")))
            votes[name] += found
            spoken[name] += found
    if not votes:
        return ""
    (best, count), second = votes.most_common(1)[0], sorted(votes.values())[-2] if len(votes) > 1 else 0
    enough = count >= (LEAST if len(said) <= SHORT else LEAST + 1) and count > second
    return best if enough and spoken[best] >= SHARE * len(said) else ""


def _script(text: str) -> str:
    """The script of most letters; Japanese where some are kana, whatever else there is."""
    if text.isascii():
        return "LATIN"
    scripts: Counter[str] = Counter(filter(None, map(_script_of, text)))
    if not scripts:
        return ""
    kana = scripts["HIRAGANA"] + scripts["KATAKANA"]
    if kana and kana + scripts["CJK"] > sum(scripts.values()) / 2 and kana >= 0.05 * scripts["CJK"]:
        return "HIRAGANA"
    best, count = scripts.most_common(1)[0]
    return best if count > sum(scripts.values()) / 2 else ""


@cache
def _script_of(char: str) -> str:
    if not char.isalpha():
        return ""
    return unicodedata.name(char, "").split(" ")[0].split("-")[0]
