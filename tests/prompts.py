"""Prompts for the tokenizers, none like the other: 319 that are always the same, and as many random ones as anybody wants.

With CLIP's vocabulary, which is not ours to give away, beside the repository.
"""

# ruff: noqa: RUF001 (letters that look like others are what a tokenizer must not confuse)
from __future__ import annotations

import hashlib
import html
import random
import unicodedata
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path

from triptych.checkpoints.clip_vocabulary import read_clip_vocabulary
from triptych.models.tokenizer import END, START

VOCABULARY = Path(__file__).resolve().parents[2] / "shared" / "data" / "bpe_simple_vocab_16e6.txt.gz"
"""OpenAI's list of merges, of which vocab.json and merges.txt are made; where it is absent there is nothing to compare."""

_PLAIN = [
    "a",
    "a photo of an astronaut riding a horse on mars",
    "a red circle on a blue background",
    "trending on artstation, by greg rutkowski and alphonse mucha",
    "semi-detached state-of-the-art co-op",
    "snake_case and camelCase and kebab-case",
    "(masterpiece:1.2), [bad hands], {best quality}",
    "((((very nested))))",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
]
_UPPER_CASE = [
    "A Photo Of An ASTRONAUT Riding A Horse On Mars",
    "DON'T SHOUT, IT'S RUDE",
    "Ångström ÅNGSTRÖM ångström",
    "straße STRASSE STRAẞE",
    "İstanbul ISTANBUL ıstanbul",
    "ΟΔΥΣΣΕΥΣ ΤΗΣ ΘΑΛΑΣΣΑΣ",
    "ΑΣ ΑΣ' ΑΣ. Σ ΣΣ",
    "K Å Ω are signs, k å ω are letters",
    "ﬁne ﬂour LIGATURES ﬀ ﬃ ﬆ",
    "ǅ Ǆ ǆ ǈ ǋ",
]
_CONTRACTIONS = [
    "don't, can't, it's, they're, I've, we'll, she'd, I'm",
    "rock'n'roll 'quoted' ''twice''",
    "'s't're've'm'll'd",
    "'S 'T 'RE 'VE 'M 'LL 'D",
    "it’s they’re with a typographer's mark",
    "'ſ and ſ and it'ſ with a long s",
    "'sam 'tis 'twas 'demand 'red 'very 'many 'llama",
    "!'s !'t .'re",
    "a's'b",
]
_PUNCTUATION = [
    "hello!!! what??? no... yes?!",
    "! ! ! !!",
    "no!no !important",
    "https://example.org/path?query=1&other=two#fragment",
    "mail@example.org",
    "#hashtag @mention $100 €50 £20 ¥1000",
    "back\\slash / slash | pipe ~ tilde ` tick ^ hat",
    "“curly quotes” ‘single’ — dash – en … ellipsis",
    "«guillemets» ‹single› „low“ ¿what? ¡no!",
    "{}[]()<>\"'`~!@#$%^&*_+-=|\\:;,.?/",
    ". , . , . ,",
    "-----_____=====",
]
_DIGITS = [
    "1234567890",
    "in 1984 there were 99 luftballons",
    "3.14159, 1,000,000 and 50%",
    "4k, 8k, uhd, f/1.8, 35mm, iso-400",
    "x² + y³ = ½ ⅓ Ⅳ",
    "٠١٢٣ १२३ 一二三 ①②③ 𝟘𝟙𝟚",
    "0x1F 1e-5 2nd 3rd 4th",
    "１２３ fullwidth ＡＢＣ",
]
_HTML = [
    "a & b < c > d",
    "&amp; &lt;b&gt; &#39;",
    "&amp;amp; &amp;lt;twice&amp;gt;",
    "<b>bold</b>",
    "&eacute;&Eacute; caf&eacute; &nbsp; &hearts; &#x1F431;",
    "&notit; &not; &ampersand &copy &copy2",
    "&#0; &#128; &#xD800; &#1114112; &#13;",
    "&lt;|endoftext|&gt; &#60;|startoftext|>",
    "tom &amp jerry &quot;quoted&quot;",
    "&NewLine;&Tab;&nbsp;",
]
_ACCENTS = [
    "café naïve façade",
    "cafe\u0301 nai\u0308ve fac\u0327ade",
    "\u1e69 \u0073\u0323\u0307 \u0073\u0307\u0323",
    "q\u0307\u0323 with two marks",
    "a\u0300\u0301\u0302\u0303\u0304\u0305 zalgo",
    "\u212b \u00c5 A\u030a",
    "\u1100\u1161\u11a8 \uac01 \u1100\uac00",
    "\u0958 \u0915\u093c",
    "\ufb1d \u05d9\u05b4",
    "\u0301 a mark alone, \u0301\u0301 two",
    "Tiếng Việt có dấu",
    unicodedata.normalize("NFD", "Tiếng Việt có dấu"),
    unicodedata.normalize("NFD", "Žluťoučký kůň příšerně úpěl ďábelské ódy"),
    "Žluťoučký kůň příšerně úpěl ďábelské ódy",
]
_SCRIPTS = [
    "Москва зимой",
    "Αθήνα ΑΘΗΝΑ",
    "北京的冬天",
    "東京タワーの夜景",
    "ｶﾀｶﾅ ﾊﾞﾋﾟ カタカナ",
    "서울의 밤",
    "מגדל בירושלים",
    "القاهرة ليلا",
    "ประเทศไทย",
    "हिन्दी में लिखा",
    "தமிழ் মেঘ ગુજરાતી",
    "ქართული ᲥᲐᲠᲗᲣᲚᲘ",
    "ᏣᎳᎩ ꮳꮃꭹ",
    "𝔉𝔯𝔞𝔨𝔱𝔲𝔯 𝓈𝒸𝓇𝒾𝓅𝓉",
    "mixed кириллица and latin, оrаnge",
    "龍龍龍 龍",
    "\U00020000\U0002a6d6 rare characters",
]
_EMOJI = [
    "🐱 and 🐶",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 flag",
    "👍🏽 👍🏿 ☝️",
    "🇫🇷🇩🇪🇯🇵",
    "1️⃣ 2️⃣ #️⃣",
    "😀😀😀",
    "art🎨by me✨",
    "❤ ❤️ ♥︎",
]
_WHITE_SPACE = [
    "",
    " ",
    "\n\n\n",
    "\u3000",
    "  leading,  double   and trailing spaces   ",
    "tabs\tand\nnew\r\nlines",
    "zero\u200bwidth and non\u00a0breaking and em\u2003space",
    "\u2028line\u2029paragraph\u0085next\u000bvertical\u000cform",
    "\ufeffmark of order",
    "word\u2060joiner \u180e mongolian \u200e\u200f directions",
]
_CONTROLS = [
    "\x00null\x00",
    "bell\x07 escape\x1b[31m delete\x7f",
    "\x1cfile\x1dgroup\x1erecord\x1funit",
    "\x1c",
    "soft\u00adhyphen",
    "\x80\x81\x9f",
    "\ue000 private \U000f0000",
    "\uffff \ufffd \U0010ffff",
]
_MARKS = [
    "the word <|endoftext|> in the middle",
    "<|startoftext|>a prompt that brings its own mark",
    "<|ENDOFTEXT|> <|EndOfText|> <|STARTOFTEXT|>",
    "!<|endoftext|>! a<|endoftext|>b 1<|endoftext|>2",
    "<|endoftext|><|endoftext|><|startoftext|>",
    "<|endoftext|",
    "<||startoftext|>",
    "<|ſtartoftext|>",
    "  <|endoftext|>  ",
    "</w> a</w>",
]
_VERY_LONG = [
    "one two three " * 40,
    "a" * 1000,
    "a " * 74 + "a",
    "a " * 75 + "a",
    "a " * 76 + "a",
    "!" * 300,
    "🐱" * 100,
    "7" * 200,
    "x" + "\u0301" * 100,
    " " * 500 + "far out",
    "the quick brown fox jumps over the lazy dog, " * 60,
]
_SUBJECTS = (
    "an astronaut",
    "two cats",
    "the old harbour",
    "a woman's portrait",
    "a bowl of ramen",
    "the year 1999",
    "a Jugendstil poster",
    "the lighthouse",
)
_PLACES = ("on mars", "in the rain", "by the sea at dawn", "in a neon-lit street", "under a microscope")
_STYLES = (
    "oil on canvas",
    "highly detailed, 8k, cinematic lighting",
    "studio photo, 85mm, f/1.4, bokeh",
    "pixel art",
    "in the style of Hokusai",
)


def _made() -> Iterator[str]:
    """Sentences such as people type, in cases, spacings and spellings that they type too."""
    manners = (
        str,
        str.upper,
        str.title,
        lambda text: text.replace(" ", "  "),
        lambda text: text.replace(", ", ","),
        lambda text: unicodedata.normalize("NFD", text.replace("e", "é")),
        lambda text: html.escape(f'"{text}" & more'),
    )
    for number, (subject, place, style) in enumerate(product(_SUBJECTS, _PLACES, _STYLES)):
        yield manners[number % len(manners)](f"{subject} {place}, {style}")


_WRITTEN = [
    *(_PLAIN + _UPPER_CASE + _CONTRACTIONS + _PUNCTUATION + _DIGITS + _HTML + _ACCENTS + _SCRIPTS + _EMOJI),
    *(_WHITE_SPACE + _CONTROLS + _MARKS + _VERY_LONG),
]
PROMPTS = [*_WRITTEN, *islice(_made(), 319 - len(_WRITTEN))]

_ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz ",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ ",
    "0123456789 .,",
    " \t\n\r\u000b\u000c\u0085\u00a0\u1680\u2003\u2028\u2029\u202f\u3000\u200b\ufeff",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "'’ſsStTrReEvVmMlLdD ",
    "<|>/startofenx ſ!",
    "\x00\x01\x07\x1b\x1c\x1d\x1e\x1f\x7f\x80\x9f\u00ad",
    "àéîõüçñßøåæœÀÉÎÕÜÇÑẞØÅÆŒ",
    "aeiou\u0300\u0301\u0302\u0303\u0308\u030a\u0323\u0327 ",
    "αβγσςΣΑΩώάίϊΐ ",
    "абвгдежзЁёЙйІі ",
    "İıIiǅǄǆKÅΩﬁﬂﬀ",
    "北京東京漢字かなカナｶﾅ、。",
    "가각갂\u1100\u1161\u11a8",
    "अआक\u093c\u094dषिी",
    "ابتثجحخד\u05b4ה\u064b",
    "ไทยก็้",
    "🐱🐶👩\u200d👧🏽🇫🇷\ufe0f❤✨",
    "²³½⅓Ⅳ①٣३𝟘",
]
_ENTITIES = ["&amp;", "&lt;", "&#39;", "&#x41;", "&eacute", "&amp;gt;", "&nbsp;", "&bogus;", "&#0;", "&"]
_TOKENS = [START, END, START.upper(), END.title(), "!", "'s", "'ſ", "</w>"]


def random_prompts(number: int, seed: int) -> Iterator[str]:
    """Strings of mixed alphabets, now and then of any characters at all, with marks and entities among them."""
    chance = random.Random(seed)
    for _ in range(number):
        yield "".join(_piece(chance) for _ in range(chance.randint(1, 6)))


def _piece(chance: random.Random) -> str:
    kind = chance.random()
    if kind < 0.1:
        return chance.choice(_ENTITIES)
    if kind < 0.2:
        return chance.choice(_TOKENS)
    if kind < 0.3:
        return "".join(_any_character(chance) for _ in range(chance.randint(1, 4)))
    return "".join(chance.choices(chance.choice(_ALPHABETS), k=chance.randint(1, 12)))


def _any_character(chance: random.Random) -> str:
    number = chance.randrange(0x110000 - 0x800)
    return chr(number if number < 0xD800 else number + 0x800)


def digest_of(prompts: list[str]) -> str:
    return hashlib.sha256("\0".join(map(repr, prompts)).encode()).hexdigest()


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's own tokens by number, and its merges in order."""
    return read_clip_vocabulary(VOCABULARY)


def byte_letters() -> dict[int, str]:
    """A printable letter for every byte, printable bytes first: the order of GPT-2's and CLIP's vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + number) for number, byte in enumerate(others)}
