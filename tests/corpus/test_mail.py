"""Of mail the subject and the text of each message are read, in its encoding, without what it quotes or attaches."""

import email.message

from tests.corpus.desktop_files import read
from tpullm.corpus.document import NOT_READ


def mail(subject, text, charset="utf-8", html="", attached=b""):
    message = email.message.EmailMessage()
    message["From"], message["Subject"], message["Date"] = "a@example.com", subject, "Thu, 02 May 2024 10:00:00 +0900"
    message.set_content(text, charset=charset)
    if html:
        message.add_alternative(html, subtype="html")
    if attached:
        message.add_attachment(attached, maintype="text", subtype="plain", filename="a.txt")
    return message.as_bytes()


def test_a_message_is_its_subject_and_text(tmp_path):
    text = "お世話になります。\n\n> 前の文\n> quoted\nよろしくお願いします。\n-- \n署名\n"
    (tmp_path / "a.eml").write_bytes(mail("会議の件", text, "iso-2022-jp", "<p>HTML</p>", b"attached"))
    (raw,) = read(tmp_path / "a.eml")
    assert (raw.text, raw.date) == ("会議の件\n\nお世話になります。\n\nよろしくお願いします。\n", "2024-05-02")
    (tmp_path / "b.eml").write_bytes(b"Subject: x\nContent-Type: text/html\n\n<p>Only <b>HTML</b>.</p>\n")
    assert read(tmp_path / "b.eml")[0].text == "x\n\nOnly HTML.\n"


def test_a_mailbox_is_its_messages_whatever_their_encoding_is_called(tmp_path):
    begin = b"From a@example.com Thu May  2 10:00:00 2024\n"
    odd = b"Subject: odd\nContent-Type: text/plain; charset=no-such\n\nCaf\xc3\xa9\n"
    (tmp_path / "a.mbox").write_bytes(begin + mail("one", "First.\n>From here\n") + b"\n" + begin + odd)
    raws = read(tmp_path / "a.mbox")
    assert [(raw.text, raw.record) for raw in raws] == [
        ("one\n\nFirst.\n", "message 1"),
        ("odd\n\nCafé\n", "message 2"),
    ]
    (tmp_path / "b.mbox").write_text("no mailbox\n")
    assert read(tmp_path / "b.mbox")[0].dropped == NOT_READ
