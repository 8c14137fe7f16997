"""Folds the spellings of Japanese: old kanji with new ones, old kana with new ones, and readings are left out.

A text before 1946 writes 學校 for 学校, けふ for きょう, でせう for でしょう, ちやうど for ちょうど and 思はう for
思おう; an edition of today writes the new forms. A table of single characters folds both to one text, which nobody
reads. A vowel that sounds otherwise before う is one with the vowel it became: a with o, and e with i. は to ほ are
わ to お, for a text does not say where a word begins. や, ゆ and よ are left out, small or not: せう is しょう.
Katakana are hiragana. Okurigana (生れた, 生まれた) and words in kana (或いは, あるいは) stay different.
"""

import functools
import re

import numpy as np

from tpullm.corpus.characters import END, SLOW, code_points, folded, folding_table
from tpullm.corpus.filters.cleaning import without_ruby

# 漢字（かんじ）, as browsers show <ruby> without a layout.
READING = re.compile("[（(][ぁ-ゖァ-ヺー・]{1,20}[）)]")
REPEATED, VOICED = re.compile("([ぁ-ゖァ-ヺ])[ゝヽ]"), re.compile("([かきくけこさしすせそたちつてとはひふへほ])ゞ")

# The forms of the list of jōyō kanji (2010) and some others, and those before it, where NFKC does not fold them.
OLD = (
    "亞惡壓圍醫爲壹隱榮營衞驛圓鹽緣艷應歐毆櫻奧橫溫穩假價畫會壞懷繪擴殼覺學嶽樂渴罐卷陷勸寬關歡觀顏氣歸龜僞戲犧舊"
    "據擧虛峽挾敎强狹鄕區驅勳薰徑莖惠揭溪經螢輕繼鷄藝擊缺硏縣儉劍險圈檢獻權顯驗嚴廣效恆黃鑛號國黑歲濟碎齋劑雜參棧"
    "蠶慘贊殘絲齒兒辭濕實寫釋壽收從澁獸縱肅處敍奬將稱涉燒證條狀乘淨剩疊繩壤孃讓釀觸囑眞寢愼盡圖粹醉隨髓樞數瀨聲靜"
    "齊攝竊專戰淺潛纖踐錢禪雙壯爭莊搜插巢裝總騷藏臟卽屬續墮對體帶滯臺瀧擇澤擔單膽團斷彈遲癡蟲晝鑄廳徵聽敕鎭遞鐵點"
    "轉傳燈當黨盜稻鬭德獨讀屆貳惱腦霸拜廢賣麥發髮拔晚蠻祕濱甁拂佛倂竝邊變辨瓣辯步寶豐襃飜每萬滿麵默彌譯藥與豫餘譽"
    "搖樣謠來賴亂覽龍兩獵綠淚壘禮勵靈齡曆歷戀鍊爐勞樓錄灣靑淸內戶說稅脫閱悅銳絕曾穗尙遙堯巖"
)
NEW = (
    "亜悪圧囲医為壱隠栄営衛駅円塩縁艶応欧殴桜奥横温穏仮価画会壊懐絵拡殻覚学岳楽渇缶巻陥勧寛関歓観顔気帰亀偽戯犠旧"
    "拠挙虚峡挟教強狭郷区駆勲薫径茎恵掲渓経蛍軽継鶏芸撃欠研県倹剣険圏検献権顕験厳広効恒黄鉱号国黒歳済砕斎剤雑参桟"
    "蚕惨賛残糸歯児辞湿実写釈寿収従渋獣縦粛処叙奨将称渉焼証条状乗浄剰畳縄壌嬢譲醸触嘱真寝慎尽図粋酔随髄枢数瀬声静"
    "斉摂窃専戦浅潜繊践銭禅双壮争荘捜挿巣装総騒蔵臓即属続堕対体帯滞台滝択沢担単胆団断弾遅痴虫昼鋳庁徴聴勅鎮逓鉄点"
    "転伝灯当党盗稲闘徳独読届弐悩脳覇拝廃売麦発髪抜晩蛮秘浜瓶払仏併並辺変弁弁弁歩宝豊褒翻毎万満麺黙弥訳薬与予余誉"
    "揺様謡来頼乱覧竜両猟緑涙塁礼励霊齢暦歴恋錬炉労楼録湾青清内戸説税脱閲悦鋭絶曽穂尚遥尭巌"
)

HIRAGANA, KATAKANA = range(0x3041, 0x3097), range(0x30A1, 0x30F7)  # the same kana in the same order
# A kana, and those that are folded to it.
FORMS = """あぁはわゎおぉほを いぃひゐえぇへゑ うぅふ かゕこ きけゖ がご ぎげ さそ しせ ざぞ じぜぢ ずづ
たと ちて つっ だど なの にね ばぼ びべ ぱぽ ぴぺ まも みめ らろ りれ"""
LEFT_OUT = "ゃやゅゆょよ"


def without_readings(text: str) -> str:
    """`text` without its ruby, in the form of Aozora Bunko or in brackets, and without notes of who typed it. A mark
    for a repeated kana (こゝろ) becomes that kana."""
    if text.isascii():
        return text
    if "《" in text or "［＃" in text:
        text = without_ruby(text)
    if "（" in text or "(" in text:
        text = READING.sub("", text)
    if "ゝ" in text or "ヽ" in text:
        text = REPEATED.sub(r"\1\1", text)
    return VOICED.sub(lambda match: match[1] + chr(ord(match[1]) + 1), text) if "ゞ" in text else text


def new_spelling(old_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A folded text in its one spelling, uint32 [left], and which characters of it are left, bool [C]."""
    text_C = _table().take(old_C, mode="clip")
    is_left = text_C > 0
    return text_C[is_left], is_left


def respelled(text: str) -> np.ndarray:
    """The letters of a text, folded and in their one spelling: uint32 [left]."""
    text = without_readings(text)
    if text.isascii():
        return folded(text)
    points = _folding_table().take(code_points(text), mode="clip")
    if len(points) and points.max() == SLOW:
        return new_spelling(folded(text))[0]
    return points[points > 0]


@functools.cache
def _folding_table() -> np.ndarray:
    """Both tables in one: a second one would have to be fetched into the cache for each document."""
    table = folding_table()
    return np.where(table == SLOW, SLOW, _table().take(table, mode="clip"))


@functools.cache
def _table() -> np.ndarray:
    """What each character becomes, 0 for nothing: uint32 [END]."""
    table = np.arange(END, dtype=np.uint32)
    table[[*map(ord, OLD)]] = [*map(ord, NEW)]
    for form, *others in FORMS.split():
        table[[*map(ord, others)]] = ord(form)
    table[[*map(ord, LEFT_OUT)]] = 0
    table[KATAKANA] = table[HIRAGANA]
    return table
