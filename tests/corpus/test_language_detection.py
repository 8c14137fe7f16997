"""The script says which languages are possible, and a model which of them it is: the same one on every machine."""

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from tests.conftest import ROOT
from tpullm.corpus import language_detection
from tpullm.system.errors import UserError

TEXTS = {
    "ja": "今日はいい天気ですね。私はリンゴを食べるのが好きです。",
    "en": "It is a fine day, and I like to eat the apples that are in the garden of the school.",
    "de": "Das Wetter ist heute schön, und ich esse mit den Kindern die Äpfel von dem Baum, nicht die Birnen.",
    "fr": "Il fait beau aujourd'hui, et les enfants mangent les pommes qui sont dans le jardin de l'école.",
    "sv": "Det är fint väder i dag, och jag äter gärna äpplen som växer i trädgården bakom skolan.",
    "zh": "今天天气很好，我喜欢吃苹果，每天都去学校读书。",
    "ko": "오늘은 날씨가 좋네요. 저는 사과를 좋아합니다.",
    "ru": "Сегодня хорошая погода, и я люблю есть яблоки.",
    "uk": "Сьогодні гарна погода, і я люблю їсти яблука, що ростуть у нашому саду.",
    "ar": "الطقس جميل اليوم، وأنا أحب أن آكل التفاح الذي ينمو في حديقة المدرسة.",
    "fa": "امروز هوا خوب است و من دوست دارم سیب‌هایی را که در باغ مدرسه می‌رویند بخورم.",
    "hi": "आज मौसम अच्छा है, और मुझे स्कूल के बगीचे में लगे सेब खाना पसंद है।",
    "bn": "আজ আবহাওয়া সুন্দর, এবং আমি স্কুলের বাগানের আপেল খেতে ভালোবাসি।",
    "el": "Σήμερα ο καιρός είναι ωραίος και μου αρέσει να τρώω μήλα.",
    "th": "วันนี้อากาศดี และฉันชอบกินแอปเปิลในสวนของโรงเรียน",
    "km": "ថ្ងៃនេះអាកាសធាតុល្អ ហើយខ្ញុំចូលចិត្តញ៉ាំផ្លែប៉ោម។",
}
ENGLISH, GERMAN = TEXTS["en"] + " ", TEXTS["de"] + " "
CODE = "def read(path):\n    with open(path) as file:\n        return [line.split(',') for line in file]\n"


@pytest.mark.parametrize("language", TEXTS)
def test_a_text_is_in_its_own_language_only_and_gets_it_without_a_name(language):
    text = TEXTS[language]
    assert [named for named in TEXTS if language_detection.is_language(text, named)] == [language]
    assert language_detection.guess(text) == language_detection.guess(text.upper()) == language
    prose = text * (1 + len(CODE) // len(text))
    assert language_detection.is_language(f"{prose}\n\n```python\n{CODE}```\n\n" * 5, language)  # half code


HEXADECIMAL = " ".join(f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}" for number in range(1, 40))


def test_what_is_no_sentence_is_undetermined_and_passes_for_any_language_of_its_script():
    for text in ("", "12345", "!?", "q", "x = 3; y = 4", "今 abcd", "https://a.b/c.html", HEXADECIMAL):
        assert language_detection.guess(text) == "und"
    for text in ("q", "x = 3; y = 4", "IPv6 2001:db8::1 ABC-123 v0.4.0 0x3f"):
        passes = [language_detection.is_language(text, language) for language in ("en", "de", "sv", "ru")]
        assert passes == [True, True, True, False]


@pytest.mark.parametrize("group", language_detection.ALIKE, ids="-".join)
def test_languages_that_are_written_alike_pass_for_each_other(group):
    texts = {
        "no": "Været er fint i dag, og jeg liker å spise eplene som vokser i hagen bak skolen.",
        "bs": "Danas je lijepo vrijeme i ja volim jesti jabuke koje rastu u vrtu iza naše škole.",
        "id": "Cuaca hari ini cerah dan saya suka makan apel yang tumbuh di kebun belakang sekolah.",
        "he": "היום מזג האוויר יפה ואני אוהב לאכול תפוחים מהגינה של בית הספר.",
        "bo": "དེ་རིང་གནམ་གཤིས་ཡག་པོ་འདུག ང་ཀུ་ཤུ་ཟ་རྒྱུར་དགའ།",
        "tl": "Maganda ang panahon ngayon at gusto kong kumain ng mga mansanas sa hardin ng paaralan.",
        **TEXTS,
    }
    text = texts[group[0]]
    assert language_detection.guess(text) in group
    assert {name for name in language_detection.KNOWN if language_detection.is_language(text, name)} >= set(group)


def test_the_middle_of_a_text_counts_as_much_as_its_beginning():
    text = ENGLISH[:60] + GERMAN * 3 + ENGLISH + GERMAN * 3
    middle = len(text) // 2  # the first look sees English alone; a text is only refused after the longest
    assert language_detection.is_language(text[:middle] + ENGLISH[:60] + text[middle:], "de")
    assert language_detection.is_language(ENGLISH * 40 + GERMAN * 100, "de")
    assert not language_detection.is_language(ENGLISH * 100 + GERMAN * 40, "de")
    assert language_detection.guess(TEXTS["en"] * 30 + TEXTS["ja"] * 500) == "ja"


def test_what_is_known_is_what_the_model_knows_and_names_for_it():
    shipped = set(language_detection.model().classes)
    assert shipped == language_detection.KNOWN - {"nb", "sh", "bo", "fil"} | {language_detection.NO_LANGUAGE}
    assert set(language_detection.LANGUAGES) == set(language_detection.SCRIPTS)


def test_the_language_that_is_meant_is_named():
    meant = {"jp": "ja", "en_US": "en", "pt-BR": "pt", "German": "de", "zho": "zh", "xx": ""}
    for language, other in meant.items():
        assert language_detection.nearest(language) == other
        advice = f"did you mean {other}\\?" if other else "leave it out"
        with pytest.raises(UserError, match=f"^here: {language} cannot be detected; {advice}"):
            language_detection.check(language, "here")
    assert language_detection.KNOWN.isdisjoint(language_detection.MISTAKEN)
    assert language_detection.KNOWN.issuperset(language_detection.MISTAKEN.values())
    # The manual lists the languages and those that are written alike.
    page = (ROOT / "docs" / "en" / "your-text.md").read_text("utf-8").partition("\n## Languages\n")[2]
    listed = re.search(r"```text\n(.*?)```", page, re.S)[1].split()
    assert listed == sorted(language_detection.KNOWN)
    alike = re.search(r"pass for each other:([^.]*)\.", page)[1]
    assert tuple(tuple(re.findall(r"`(\w+)`", group)) for group in alike.split(";")) == language_detection.ALIKE


def test_shares_are_of_what_is_said_so_an_ideograph_counts_three_letters():
    shares = language_detection.script_shares("abcdefghi 123 本かЯ")
    assert shares["latin"] == 9 / 16 and shares["cyrillic"] == 1 / 16
    assert shares["han"] == shares["kana"] == 3 / 16 and sum(shares.values()) == 1
    assert set(language_detection.script_shares("123 !?").values()) == {0}
    for script, blocks in language_detection.SCRIPTS.items():  # the ends of each block belong to its script
        for point in (point for block in blocks for point in block):
            assert language_detection.script_shares(chr(point))[script] == 1


def test_half_of_a_text_without_spaces_decides():
    for text in ("本" * 3 + "a" * 9, "ภาษาไทย", "ພາສາລາວ", "ភាសាខ្មែរ", "မြန်မာဘာသာ", "བོད་ཡིག"):
        assert language_detection.is_spaceless(text)
    assert not any(map(language_detection.is_spaceless, ("本" * 3 + "a" * 10, "가", "বাংলা", "")))


def test_a_twentieth_of_kana_is_japanese_and_three_tenths_of_another_script_are_enough_beside_latin():
    for text, language in (("本" * 19 + "か", "ja"), ("本" * 19, "zh"), ("本" * 20 + "か", "zh")):
        assert [name for name in ("ja", "zh") if language_detection.is_language(text, name)] == [language]
    for cyrillic, passes in ((3, True), (2, False)):
        text = " ".join(["да"] * cyrillic + ["xy"] * (10 - cyrillic))
        assert language_detection.is_language(text, "ru") == passes


ANY = st.text(st.characters(exclude_categories=()))


@given(ANY | st.lists(st.sampled_from(list(TEXTS.values())), max_size=40).map("".join))
@example("\ud800")
@example("\U0010ffff")
@example("a" * 5000)
def test_what_is_guessed_passes_as_such(text):
    guessed = language_detection.guess(text)
    assert guessed == "und" or guessed in language_detection.KNOWN and language_detection.is_language(text, guessed)


SIX = ("de", "en", "fr", "nl", "sv", "zxx")
SAMPLES = (TEXTS["en"], TEXTS["de"], "x = [f(2 * y) for y in range(1000)]", "Mijn hond eet elke dag een appel. " * 200)


def test_probabilities_are_those_of_py3langid():
    """Within what it rounds: it sums in float32, and weights are rounded to 1/1024 here."""
    theirs = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    theirs.set_languages(SIX)
    for text in (*SAMPLES, *TEXTS.values()):
        assert language_detection.probabilities(text, SIX) == pytest.approx(dict(theirs.rank(text)), abs=1e-3)


def test_the_model_has_only_numbers_that_the_sums_are_exact_for():
    """A term is below 2**26, so 2**27 n-grams may be summed; a text has fewer bytes than that in any look."""
    steps = language_detection.model().log_probabilities.astype(float) * language_detection.PER_NAT
    assert (steps == steps.round()).all() and abs(steps).max() < 2**15
    assert abs(steps).max() * language_detection.WEIGHTS.max() < 2**26


def test_accents_may_be_composed_or_not_and_a_language_in_two_scripts_is_one():
    text = "Äpfel und Brötchen schmecken überall süß, wo Bäume blühen."
    decomposed = unicodedata.normalize("NFD", text)
    assert language_detection.probabilities(decomposed, SIX) == language_detection.probabilities(text, SIX)
    assert language_detection.model().classes.count("sr") == 2
    found = language_detection.probabilities("Свако има право на слободу мишљења.", ("bg", "ru", "sr"))
    assert max(found, key=found.get) == "sr"


def test_no_speech_of_shakespeare_and_no_paragraph_of_soseki_is_dropped(real_text):
    """But two speeches that are in Italian and in Latin."""
    speeches = (real_text / "tinyshakespeare.txt").read_text("utf-8").split("\n\n")
    foreign = [text for text in speeches if len(text) >= 50 and not language_detection.is_language(text, "en")]
    assert [text.partition(":")[0] for text in foreign] == ["HORTENSIO", "LUCENTIO"]
    for book in sorted((real_text / "soseki").glob("*.txt")):
        paragraphs = [text for text in book.read_text("utf-8").split("\n") if len(text) >= 50]
        assert len(paragraphs) > 100 and all(language_detection.is_language(text, "ja") for text in paragraphs)
