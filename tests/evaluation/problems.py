"""Problems of our own in the forms of HumanEval and of MBPP."""

import gzip
import json

ROWS = [
    {
        "task_id": f"own/{number}",
        "prompt": f'import math\n\ndef add_{number}(x):\n    """Add {number} to x."""\n',
        "entry_point": f"add_{number}",
        "canonical_solution": f"    return math.floor(x) + {number}\n",
        "test": f"def check(candidate):\n    for x in (1, -3):\n        assert candidate(x) == x + {number}",
    }
    for number in range(1, 4)
]
MBPP = [
    {
        "task_id": number,
        "text": f"Write a function to add {number} to a number. ",
        "code": f"def helper(x):\n    return x\n\ndef sum(x):\n    return helper(x) + {number}",
        "test_setup_code": "" if number else "import math",
        "test_list": [f"assert sum(1) == {1 + number}", f"assert sum(0) == {number}"],
    }
    for number in range(4)
]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)
