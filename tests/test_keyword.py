import pytest

from astra_trl import Exchange, InputError, KeywordScorer


def found(words, *texts):
    return [bool(score) for score in KeywordScorer(words)([Exchange((), "", text) for text in texts])]


def test_whole_words_match_without_regard_to_case():
    said = ["You IDIOT!", "idiotic", "Shut up, please", "shut upwards", "idiot_2", "idiot's", "(idiot)", ""]
    assert found(["idiot", "shut up"], *said) == [True, False, True, False, False, True, True, False]


def test_case_is_folded_and_letters_composed_in_every_script():
    assert found(["Straße"], "STRASSE", "strasse", "Straßen") == [True, True, False]
    assert found(["дурак", "ΒΛΆΚΑΣ"], "Ты ДУРАК?", "дураки", "βλάκας!") == [True, False, True]
    assert found(["caf\u00e9"], "cafe\u0301", "cafe", "ｃａｆé") == [True, False, True]  # decomposed, full width


def test_scripts_without_spaces_need_none_around_a_word():
    assert found(["笨蛋", "ばか"], "你是笨蛋吗", "あなたはばかです", "笨") == [True, True, False]
    assert found(["โง่"], "คุณโง่มาก", "โง") == [True, False]


def test_a_combining_mark_continues_a_word():
    assert found(["मूर्ख"], "तुम मूर्ख हो", "मूर्खा", "मूर्खता") == [True, False, False]


def test_a_later_occurrence_counts_where_an_earlier_one_is_part_of_a_word():
    assert found(["ass"], "a class act, you ass", "grass class") == [True, False]


def test_words_come_from_a_file(tmp_path):
    (tmp_path / "words.txt").write_text("\ufefffool\r\n\nshut up\n", encoding="utf-8")
    for path in (tmp_path / "words.txt", str(tmp_path / "words.txt")):
        assert KeywordScorer(path).words == ("fool", "shut up")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    for path, message in (("idiot", "no word list could be read from 'idiot'"), (tmp_path / "binary.txt", "UTF-8")):
        with pytest.raises(InputError, match=message):
            KeywordScorer(path)


@pytest.mark.parametrize("name", ["words.csv", "words.JSON", "words.jsonl", "words.xlsx"])
def test_words_in_another_format_are_refused_not_read_as_lines(tmp_path, name):
    (tmp_path / name).write_text("text,severity\nfool,1.2\n")
    with pytest.raises(
        InputError, match=r"word list '.*' is a \.\w+ file by its name: give a \.txt file with one word"
    ):
        KeywordScorer(tmp_path / name)


def test_no_words_are_refused():
    for words in ([" "], []):
        with pytest.raises(InputError, match="no words"):
            KeywordScorer(words)
