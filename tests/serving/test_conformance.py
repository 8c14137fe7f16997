"""OpenAI's own client gets from the server what it gets from OpenAI's API."""

import openai
import pytest
from serving_conformance import CASES


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key=served.key, max_retries=0) as made:
        yield made


@pytest.mark.parametrize("case", CASES)
def test_case(client, case):
    CASES[case](client, "small")
