"""Licences are compared as people write them."""

import pytest

from tpullm.corpus.filters import verdicts


@pytest.mark.parametrize(
    ("licence", "allowed", "expected"),
    [
        ("CC-BY-4.0", ["CC-BY-4.0"], True),
        ("cc-by-4.0", ["CC-BY-4.0"], True),
        ("https://creativecommons.org/licenses/by/4.0/", ["CC-BY-4.0"], True),
        ("http://creativecommons.org/licenses/by-sa/3.0/deed.ja", ["CC-BY-SA-3.0"], True),
        ("https://creativecommons.org/publicdomain/zero/1.0/", ["CC0-1.0"], True),
        ("CC BY-SA 4.0", ["CC-BY-SA-4.0"], True),
        ("Creative Commons BY NC 4.0", ["https://creativecommons.org/licenses/by-nc/4.0/"], True),
        ("https://creativecommons.org/licenses/by-nc/4.0/", ["CC-BY-4.0"], False),
        ("CC-BY-4.0", ["CC-BY-3.0"], False),
        ("MIT", ["CC-BY-4.0", "MIT"], True),
        ("MIT OR GPL-3.0-only", ["MIT"], True),
        ("MIT AND GPL-3.0-only", ["MIT"], False),
        ("MIT AND BSD-3-Clause OR GPL-3.0-only", ["MIT", "BSD-3-Clause"], True),
        ("MIT AND (BSD-3-Clause OR GPL-3.0-only)", ["MIT", "BSD-3-Clause"], False),  # not taken apart: rather left out
        ("MIT AND (BSD-3-Clause OR GPL-3.0-only)", ["mit and (BSD-3-Clause or GPL-3.0-only)"], True),
        ("public  domain", ["Public domain"], True),
        ("your own", ["MIT"], False),
        ("", ["MIT"], False),
        ("or", ["MIT"], False),
    ],
)
def test_a_licence_is_allowed_if_the_recipe_names_it(licence, allowed, expected):
    assert verdicts.is_allowed(licence, allowed) == expected
