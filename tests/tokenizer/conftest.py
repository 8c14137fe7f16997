"""Templates run in this process, which takes no time to start; `test_chat_template.py` compares it with the child."""

import pytest

from tpullm.tokenizer import published
from tpullm.tokenizer.chat_template import ChatTemplate


@pytest.fixture(autouse=True, scope="package")
def templates_here():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "TemplateChild", ChatTemplate)
        yield
