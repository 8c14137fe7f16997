"""The script says which languages are possible, and a model which of them it is: the same one on every machine."""

import re
import time
import unicodedata

import pytest
from hypothesis import example, given, settings
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


def test_what_is_no_sentence_is_undetermined_and_passes_for_any_language_of_its_letters():
    for text in ("", "12345", "!?", "q", "x = 3; y = 4", "https://a.b/c.html", HEXADECIMAL):
        assert language_detection.guess(text) == "und"
    for text in ("q", "x = 3; y = 4", "IPv6 2001:db8::1 ABC-123 v0.4.0 0x3f"):
        passes = [language_detection.is_language(text, language) for language in ("en", "de", "sv", "ru")]
        assert passes == [True, True, True, False]


OPTIONS = "apt-get --no-install-recommends install apache2-utils libapache2-mod-php # /etc/apache2/sites-available\n"


@pytest.mark.parametrize("language", ["ja", "zh", "ko", "ru", "th"])
def test_prose_among_names_and_options_is_in_its_language_until_there_is_too_little_of_it(language):
    """Of 1,369 Japanese pages of four manuals, 128 fell when half of the letters had to be Japanese, now 3."""
    text = TEXTS[language] + "\n"
    weight = 3 if language in ("ja", "zh", "ko") else 1
    letters, names = weight * sum(map(str.isalpha, text)), sum(map(str.isalpha, OPTIONS))
    for share, passes in ((0.35, True), (0.15, False)):
        times = letters * (1 - share) / share / names
        page = text * 10 + OPTIONS * max(1, round(10 * times))
        assert language_detection.is_language(page, language) == passes, share
        assert (language_detection.guess(page) == language) == passes
    assert not language_detection.is_language(ENGLISH * 20 + text, language)
    assert language_detection.is_language(ENGLISH * 20 + text, "en")


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


def test_the_letters_of_the_whole_text_count():
    """A manual of 200,000 characters fell whose beginning and middle are not translated."""
    half = TEXTS["ja"] * 600
    manual = f"{ENGLISH * 30}{half}{ENGLISH * 60}{half}"
    assert language_detection.is_language(manual, "ja") and language_detection.guess(manual) == "ja"
    assert language_detection.is_spaceless(manual) and not language_detection.is_language(manual, "en")
    begin = time.thread_time()
    assert not language_detection.is_language(manual * 300, "de")  # 14 million characters
    assert time.thread_time() - begin < 0.5


def test_what_is_known_is_what_the_model_knows_and_names_for_it():
    shipped = set(language_detection.likelihoods("x"))
    assert shipped == language_detection.KNOWN - {"nb", "sh", "bo", "fil"} | {language_detection.NO_LANGUAGE}
    assert language_detection.WRITTEN[0] & language_detection.WRITTEN[1] == {"gom", "sr", "uz"}


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


def test_half_of_a_text_without_spaces_decides_and_an_ideograph_counts_three_letters():
    for text in ("本" * 3 + "a" * 9, "ภาษาไทย", "ພາສາລາວ", "ភាសាខ្មែរ", "မြန်မာဘာသာ", "བོད་ཡིག"):
        assert language_detection.is_spaceless(text)
    assert not any(map(language_detection.is_spaceless, ("本" * 3 + "a" * 10, "가", "বাংলা", "123 !?", "")))
    for block in language_detection.SPACELESS:  # both ends of each block
        assert all(map(language_detection.is_spaceless, map(chr, block)))


ANY = st.text(st.characters(exclude_categories=()))


@given(ANY | st.lists(st.sampled_from(list(TEXTS.values())), max_size=40).map("".join))
@example("\ud800")
@example("\U0010ffff")
@example("a" * 5000)
def test_what_is_guessed_passes_as_such(text):
    guessed = language_detection.guess(text)
    assert guessed == "und" or guessed in language_detection.KNOWN and language_detection.is_language(text, guessed)


SAMPLES = (
    *TEXTS.values(),
    "x = [f(2 * y) for y in range(1000)]",
    "Mijn hond eet elke dag een appel. " * 200,
    CODE,
    "!",
)


@pytest.fixture(scope="module")
def identifier():
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def test_likelihoods_are_those_of_py3langid(identifier):
    """Within what it rounds: it sums in float32. Accents may be composed or not."""
    for text in (*SAMPLES, *(unicodedata.normalize("NFD", text).upper() for text in SAMPLES)):
        assert language_detection.likelihoods(text) == pytest.approx(dict(identifier.rank(text)), abs=2e-4)


@settings(max_examples=50)
@given(text=st.lists(st.sampled_from([*(text[:60] for text in SAMPLES), "é", "\ud800"])).map(" ".join))
def test_likelihoods_of_any_text_are_those_of_py3langid(identifier, text):
    assert language_detection.likelihoods(text) == pytest.approx(dict(identifier.rank(text)), abs=2e-4)


def test_no_speech_of_shakespeare_and_no_paragraph_of_soseki_is_dropped(real_text):
    """But two speeches that are in Italian and in Latin."""
    speeches = (real_text / "tinyshakespeare.txt").read_text("utf-8").split("\n\n")
    foreign = [text for text in speeches if len(text) >= 50 and not language_detection.is_language(text, "en")]
    assert [text.partition(":")[0] for text in foreign] == ["HORTENSIO", "LUCENTIO"]
    for book in sorted((real_text / "soseki").glob("*.txt")):
        paragraphs = [text for text in book.read_text("utf-8").split("\n") if len(text) >= 50]
        assert len(paragraphs) > 100 and all(language_detection.is_language(text, "ja") for text in paragraphs)
